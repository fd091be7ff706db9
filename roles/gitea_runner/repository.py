"""An action's folder as a Git repository of one commit, which is the same wherever and whenever it is made."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

TAG = "v4"
_WHO = "onprem-mlops <noreply@localhost> 1767225600 +0000"


@dataclass(frozen=True)
class Repository:
    """One action: its name, and its files by name (they lie side by side)."""

    name: str
    files: tuple[tuple[str, bytes], ...]
    tag: str = TAG

    @classmethod
    def read(cls, folder: Path) -> Repository:
        """The files of a folder, and those that its scripts share with others, sorted as Git sorts them."""
        own = [path for path in folder.iterdir() if path.is_file()]
        text = b"".join(path.read_bytes() for path in own)
        shared = [path for path in folder.parent.glob("*.py") if f"from {path.stem} import".encode() in text]
        found = sorted([*own, *shared], key=lambda path: path.name)
        return cls(folder.name, tuple((path.name, path.read_bytes()) for path in found))

    @property
    def _message(self) -> bytes:
        return f"Lay down {self.name}\n".encode()

    @property
    def commit(self) -> str:
        """The commit's object name."""
        entries = b"".join(
            b"100644 " + name.encode() + b"\0" + bytes.fromhex(_named("blob", data)) for name, data in self.files
        )
        text = f"tree {_named('tree', entries)}\nauthor {_WHO}\ncommitter {_WHO}\n\n".encode() + self._message
        return _named("commit", text)

    def import_stream(self) -> bytes:
        """What `git fast-import` makes the commit and its tag of."""
        parts = [
            f"commit refs/heads/main\nauthor {_WHO}\ncommitter {_WHO}\ndata {len(self._message)}\n".encode(),
            self._message,
        ]
        for name, data in self.files:
            parts.append(f"M 100644 inline {name}\ndata {len(data)}\n".encode() + data + b"\n")
        parts.append(f"\nreset refs/tags/{self.tag}\nfrom refs/heads/main\n\n".encode())
        return b"".join(parts)


def repositories(folder: Path) -> tuple[Path, ...]:
    """The folders of actions, by name."""
    return tuple(sorted(path for path in folder.iterdir() if path.is_dir()))


def _named(kind: str, data: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()
