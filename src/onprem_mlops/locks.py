"""Locks between processes. Each is a file, and ends with the process that holds it, however that ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_SECONDS = 0.1


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file ``path``; ``on_wait`` is called once if somebody else has it. Its holder may delete the file.

    Polls instead of blocking: under gevent a blocking flock would stop every other greenlet.
    """
    told = False
    while True:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.open("a") as file:
            if _taken(file.fileno()) and _same_file(file.fileno(), path):
                yield
                return
        if not told:
            on_wait()
            told = True
        time.sleep(_POLL_SECONDS)


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock file ``path``."""
    try:
        with path.open("r+") as file:
            return not _taken(file.fileno())
    except FileNotFoundError:
        return False


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same_file(descriptor: int, path: Path) -> bool:
    # The holder before us may have deleted the file with all that it guarded: then our lock guards nothing.
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
