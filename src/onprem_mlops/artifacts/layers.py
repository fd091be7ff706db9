"""Tar archives that come out the same wherever and whenever they are made."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

_EPOCH = 946_684_800


class Layer:
    """One image layer, written entry by entry; folders on the way are made once, entries carry a fixed time."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._folders: set[str] = set()

    def folder(self, path: str, mode: int = 0o755, owner: int = 0) -> None:
        """A folder and those above it."""
        for parent in reversed(PurePosixPath(path).parents):
            self._one_folder(str(parent), 0o755, 0)
        self._one_folder(path, mode, owner)

    def _one_folder(self, path: str, mode: int, owner: int) -> None:
        name = path.strip("/")
        if name in ("", ".") or name in self._folders:
            return
        self._folders.add(name)
        entry = _entry(name, mode)
        entry.type, entry.uid, entry.gid = tarfile.DIRTYPE, owner, owner
        self._tar.addfile(entry)

    def file(self, path: str, source: Path, mode: int) -> None:
        """A file with the content of `source`."""
        self._above(path)
        entry = _entry(path.strip("/"), mode)
        entry.size = source.stat().st_size
        with source.open("rb") as stream:
            self._tar.addfile(entry, stream)

    def text(self, path: str, text: str, mode: int) -> None:
        """A small text file."""
        self._above(path)
        entry = _entry(path.strip("/"), mode)
        data = text.encode()
        entry.size = len(data)
        self._tar.addfile(entry, io.BytesIO(data))

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._above(path)
        entry = _entry(path.strip("/"), 0o777)
        entry.type, entry.linkname = tarfile.SYMTYPE, target
        self._tar.addfile(entry)

    def unpacked(self, folder: str, archive: Path) -> None:
        """The entries of a tar archive, below `folder`."""
        with tarfile.open(archive) as inner:
            for member in inner:
                path = str(PurePosixPath(folder) / member.name)
                if member.isdir():
                    self.folder(path)
                    continue
                self._above(path)
                member.name, member.mtime = path.strip("/"), _EPOCH
                self._tar.addfile(member, inner.extractfile(member) if member.isreg() else None)

    def _above(self, path: str) -> None:
        parent = PurePosixPath(path).parent
        if parent.name:
            self.folder(str(parent))


def _entry(name: str, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.mtime = mode, _EPOCH
    return entry


def write_layer(target: Path, fill: Callable[[Layer], None]) -> None:
    """Write a layer tar to `target`; `fill` adds the entries, in an order that is its own to keep."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        fill(Layer(tar))


def tar_of_folder(folder: Path, target: Path, executable: Sequence[str]) -> None:
    """Pack `folder` sorted, as root, with fixed times and plain modes.

    `executable`: patterns of the files that get the execute bit, since Go's module cache has lost theirs.
    """

    def fill(layer: Layer) -> None:
        for path in sorted(folder.rglob("*"), key=lambda path: path.parts):
            inside = path.relative_to(folder)
            if path.is_symlink():
                layer.link(str(inside), str(path.readlink()))
            elif path.is_dir():
                layer.folder(str(inside))
            else:
                runs = any(inside.match(pattern) for pattern in executable)
                layer.file(str(inside), path, 0o755 if runs else 0o644)

    write_layer(target, fill)
