"""The errors a person sees. Each says what is wrong and what to do; the command line prints it and exits."""

from __future__ import annotations

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
