"""The errors a person sees. Each says what is wrong and what to do; the command line prints it and exits."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class MlopsError(Exception):
    """Something a person must know. Never shown with a traceback."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.message}\n{self.advice}" if self.advice else self.message


class RequestError(MlopsError):
    """The request or the site file is wrong; nothing was touched."""

    exit_code = 2


class NodesFailed(MlopsError):
    """The work failed on one or more nodes; other nodes did what they could."""

    exit_code = 1


class Interrupted(MlopsError):
    """A person stopped the run."""

    exit_code = 3


def suggest(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """What to do about an unknown word: ``did you mean "x"?`` if a known one is close.

    Args:
        word: what was given.
        known: what could have been given.
        otherwise: said if none is close; without it, the known words are.
    """
    known = sorted(known)
    if close := get_close_matches(word.lower(), known, n=1, cutoff=0.6):
        return f'did you mean "{close[0]}"?'
    return otherwise or (f"known: {', '.join(known)}" if known else "remove it")
