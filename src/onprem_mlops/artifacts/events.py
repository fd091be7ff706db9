"""What happens while the store is filled, as typed events. A listener is any callable that takes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Planned:
    """What is there already and what must be made, in the order in which it is started."""

    there: tuple[str, ...]
    to_make: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Started:
    """One artifact is being made from `source`; `why` says why from there."""

    name: str
    version: str
    source: str
    why: str
    log: Path


@dataclass(frozen=True, slots=True)
class Waiting:
    """Another run is making this artifact; its result is taken."""

    name: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The artifact is in the store. `reused`: nothing was made; another run had, or its new inputs are as before."""

    name: str
    version: str
    source: str
    seconds: float
    size: int
    reused: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """The artifact could not be made."""

    name: str
    seconds: float
    message: str


@dataclass(frozen=True, slots=True)
class Damaged:
    """A file in the store is not what was put there; its artifact is made again."""

    name: str
    file: str


BuildEvent = Planned | Started | Waiting | Finished | Failed | Damaged
Listener = Callable[[BuildEvent], None]


def silent(event: BuildEvent) -> None:
    """A listener that hears nothing."""
