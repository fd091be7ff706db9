"""Files by their content: a blob's name is the sha256 of what is in it, so it is there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from onprem_mlops.atomic import sync_folder

# Every blob carries this modification time. A blob with another one was touched by somebody, which costs one
# stat to notice; its content is then read again before it is trusted.
UNTOUCHED_NS = 946_684_800 * 10**9
_CHUNK = 1 << 20


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Blobs:
    """The folder `blobs/sha256/ab/<digest>`."""

    def __init__(self, root: Path) -> None:
        self._root = root / "blobs" / "sha256"
        self._incoming = root / "incoming"

    def path(self, digest: str) -> Path:
        """Where the blob is, or would be."""
        return self._root / digest[:2] / digest

    def add(self, source: Path, *, executable: bool | None = None) -> tuple[str, int]:
        """Take a copy of `source`; gives digest and size in bytes. `executable`: None keeps the file's own bit."""
        runs = os.access(source, os.X_OK) if executable is None else executable
        digest, size = sha256_of(source), source.stat().st_size
        if self.intact(digest, size):
            return digest, size
        self._incoming.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=self._incoming)
        try:
            with os.fdopen(descriptor, "wb") as target, source.open("rb") as stream:
                shutil.copyfileobj(stream, target, _CHUNK)
                target.flush()
                os.fsync(target.fileno())
            self._enter(Path(temporary), digest, 0o555 if runs else 0o444)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return digest, size

    def _enter(self, temporary: Path, digest: str, mode: int) -> None:
        temporary.chmod(mode)
        os.utime(temporary, ns=(UNTOUCHED_NS, UNTOUCHED_NS))
        target = self.path(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(target)
        sync_folder(target.parent)

    def intact(self, digest: str, size: int) -> bool:
        """Whether the blob is there and as it was written. One stat, unless somebody touched the file."""
        path = self.path(digest)
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        if status.st_size != size:
            return False
        if status.st_mtime_ns == UNTOUCHED_NS:
            return True
        if sha256_of(path) != digest:
            return False
        os.utime(path, ns=(UNTOUCHED_NS, UNTOUCHED_NS))
        return True

    def verified(self, digest: str) -> bool:
        """Whether the blob is there and its content, read in full, has the digest."""
        path = self.path(digest)
        return path.is_file() and sha256_of(path) == digest

    def drop(self, digest: str) -> None:
        """Remove the blob, if it is there."""
        self.path(digest).unlink(missing_ok=True)

    def drop_damaged(self) -> None:
        """Forget copies that an earlier run, killed while writing, left behind."""
        for path in self._leftovers():
            path.unlink(missing_ok=True)

    def _leftovers(self) -> Iterator[Path]:
        import time

        if not self._incoming.is_dir():
            return
        # Another run may be writing right now; an hour is far longer than one copy takes.
        for path in self._incoming.iterdir():
            if time.time() - path.stat().st_mtime > 3600:
                yield path
