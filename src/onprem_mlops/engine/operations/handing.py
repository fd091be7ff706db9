"""What takes long to make: one node makes it, the controller keeps it, and like nodes are handed it."""

from __future__ import annotations

import hashlib
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from pyinfra.context import host

from onprem_mlops.atomic import write_atomically
from onprem_mlops.engine.connector import FramedConnector
from onprem_mlops.engine.facts import File, FileState
from onprem_mlops.engine.operation import Command, operation
from onprem_mlops.engine.operations.files import is_checksum, or_removed
from onprem_mlops.engine.operations.guard import output
from onprem_mlops.events import Diff
from onprem_mlops.shell import Connection

if TYPE_CHECKING:
    from pyinfra.api.host import Host
    from pyinfra.api.state import State


class Maker:
    """The first node of a run that makes one thing, and those that wait for it."""

    _of_run: ClassVar[WeakKeyDictionary[State, dict[Path, Maker]]] = WeakKeyDictionary()

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failed = False

    @classmethod
    @contextmanager
    def first(cls, kept: Path) -> Iterator[None]:
        """In here a node makes what `kept` will hold, while like nodes wait. If it fails, they all try, at once."""
        maker = cls._of_run.setdefault(host.state, {}).setdefault(kept, cls())
        maker._lock.acquire()
        if maker._failed:
            maker._lock.release()
            yield
            return
        try:
            yield
        except BaseException:
            maker._failed = True
            raise
        finally:
            maker._lock.release()


class _Fetch(Command):
    def __init__(self, path: str, kept: Path) -> None:
        super().__init__(f"cat {shlex.quote(path)}", diff=Diff(str(kept), None, None))
        self._path, self._kept = path, kept

    def carry_out(self, state: State, host: Host, connector_arguments: Any) -> Any:
        connection = _connection(host)
        path = shlex.quote(self._path)
        wanted = connection.run(f"sha256sum <{path}").text.split()
        done = connection.stream(f"cat {path}", iter(()))
        if done.status or wanted[:1] != [hashlib.sha256(done.stdout).hexdigest()]:
            return False, output(f"{self._path} did not arrive whole\n{done.error_text}", error=True)
        self._kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._kept, done.stdout)
        return True, output("")


class _Hand(Command):
    def __init__(self, kept: Path, path: str, digest: str) -> None:
        target, temporary = shlex.quote(path), shlex.quote(f"{path}.mlops-new")
        super().__init__(
            f"mkdir -p {shlex.quote(path.rpartition('/')[0])} && cat >{temporary} "
            f"&& {{ {is_checksum(digest, temporary)}; }} && chmod 644 {temporary} && sync {temporary} "
            f"&& mv -fT {temporary} {target} {or_removed(temporary)}",
            diff=Diff(path, None, f"sha256 {digest}\n"),
        )
        self._kept = kept

    def carry_out(self, state: State, host: Host, connector_arguments: Any) -> Any:
        with self._kept.open("rb") as source:
            done = _connection(host).stream(self.get_raw_value(), source)
        return done.status == 0, output(done.error_text, error=done.status != 0)


def _connection(host: Host) -> Connection:
    connector = host.connector
    assert isinstance(connector, FramedConnector)
    return connector.connection


@operation
def fetched(path: str, kept: Path) -> Iterator[Command]:
    """The controller keeps a copy of a node's file, for like nodes and for the day when this one is made anew.

    Args:
        path: on the node.
        kept: on the controller, in the site's state folder. One that is there is left alone.
    """
    if not kept.exists():
        yield _Fetch(path, kept)


@operation
def handed(kept: Path, path: str) -> Iterator[Command]:
    """A node has the file that the controller keeps. It belongs to root, mode 644.

    Args:
        kept: on the controller.
        path: on the node.
    """
    now: FileState = host.get_fact(File, path=path)
    with kept.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    if now.sha256 != digest:
        yield _Hand(kept, path, digest)
