"""Files and folders that only their owner reads."""

from __future__ import annotations

import stat
from pathlib import Path

from onprem_mlops.errors import RequestError


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
