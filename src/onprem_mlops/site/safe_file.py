"""Files that are written whole or not at all, and that only their owner reads."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onprem_mlops.errors import RequestError


def write_atomically(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Give ``path`` this content. After a kill or a power cut it holds the old or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def private_folder(path: Path) -> Path:
    """Make ``path`` with mode 0700 if it is not there."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def read_private(path: Path, what: str) -> bytes:
    """Content of a file that only its owner may read. RequestError if it is absent or others can read it."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise RequestError(
                f"{what} {path} has mode {mode:o}, so others can read it",
                f"Run: chmod 600 {path}. If others may have read it, make a new one.",
            )
        return path.read_bytes()
    except PermissionError:
        raise RequestError(f"{what} {path} cannot be read by you", "Use one of your own.") from None


@contextmanager
def exclusively(lock: Path) -> Iterator[None]:
    """Hold the lock file ``lock``: changes that two processes make wait for each other instead of being lost."""
    private_folder(lock.parent)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
