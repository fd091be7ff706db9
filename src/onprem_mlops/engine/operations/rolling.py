"""What a node of a running cluster is taken through one at a time: emptied, changed, booted, let in again."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from pyinfra.api.exceptions import ConnectError
from pyinfra.context import host

from onprem_mlops.engine.connector import FramedConnector
from onprem_mlops.engine.operation import Command, operation
from onprem_mlops.engine.operations.guard import output
from onprem_mlops.engine.operations.kubectl import KUBECTL
from onprem_mlops.errors import MlopsError
from onprem_mlops.shell import Connection, Endpoint

if TYPE_CHECKING:
    from pyinfra.api.host import Host
    from pyinfra.api.state import State

DRAIN_SECONDS = 600
BOOT_SECONDS = 900
"""A server with much memory and many cards takes minutes until it even begins to boot."""
_BOOT = "cat /proc/sys/kernel/random/boot_id"


class Turns:
    """One node of a run at a time; once one has failed, none of the others begins."""

    _of_run: ClassVar[WeakKeyDictionary[State, Turns]] = WeakKeyDictionary()

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failed = ""

    @classmethod
    @contextmanager
    def take(cls) -> Iterator[None]:
        """In here the current node is the only one. MlopsError if one before it failed."""
        turns = cls._of_run.setdefault(host.state, cls())
        with turns._lock:
            if turns._failed:
                raise MlopsError(
                    f"{host.name} was left as it is: {turns._failed}, which came before it, failed",
                    f"Mend {turns._failed} first; then run the same command again, and it goes on from there.",
                )
            try:
                yield
            except BaseException:
                turns._failed = host.name
                raise


class Elsewhere(Command):
    """A command on another node, over a connection of its own."""

    def __init__(self, endpoint: Endpoint, command: str, *, seconds: int) -> None:
        super().__init__(f": on {endpoint.name}: {command}")
        self._endpoint, self._shell, self._seconds = endpoint, command, seconds

    def carry_out(self, state: State, host: Host, connector_arguments: Any) -> Any:
        """Success, and what it said there."""
        connection = Connection(self._endpoint)
        try:
            connection.connect()
            done = connection.run(self._shell, timeout=self._seconds)
        except MlopsError as error:
            return False, output(error.message, error=True)
        finally:
            connection.close()
        return done.status == 0, output(f"{done.text}\n{done.error_text}", error=done.status != 0)


class Boot(Command):
    """The node boots, and the run goes on once it is back."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"systemctl reboot  # and back within {seconds} s")
        self._seconds = seconds

    def carry_out(self, state: State, host: Host, connector_arguments: Any) -> Any:
        """Success once the node runs another boot than before."""
        connector = host.connector
        assert isinstance(connector, FramedConnector)
        connection = connector.connection
        before = connection.run(_BOOT, timeout=10).text
        # The answer may be cut off by what it asks for.
        connection.run("systemd-run -q --on-active=1 systemctl reboot", timeout=20)
        end = time.monotonic() + self._seconds
        why = "it did not go down"
        while time.monotonic() < end:
            time.sleep(2)
            connection.close()
            try:
                connection.connect()
                if connection.run(_BOOT, timeout=10).text != before:
                    return True, output("")
            except (MlopsError, ConnectError) as error:
                why = str(error)
        return False, output(f"{host.name} was told to boot and is not back after {self._seconds} s: {why}", error=True)


@operation
def drained(name: str, plane: Endpoint) -> Iterator[Command]:
    """No pod runs on a node but those of DaemonSets, and none is sent there. Disruption budgets are kept.

    Args:
        name: of the node in the cluster.
        plane: a control plane.
    """
    yield Elsewhere(
        plane,
        f"{KUBECTL} drain {shlex.quote(name)} --ignore-daemonsets --delete-emptydir-data --timeout={DRAIN_SECONDS}s",
        seconds=DRAIN_SECONDS + 60,
    )


@operation
def booted(*, seconds: int = BOOT_SECONDS) -> Iterator[Command]:
    """The node has booted anew."""
    yield Boot(seconds)


@operation
def let_in(name: str, plane: Endpoint) -> Iterator[Command]:
    """The node is ready, and pods are sent there again."""
    node = shlex.quote(name)
    yield Elsewhere(
        plane,
        f"{KUBECTL} wait --for=condition=Ready node/{node} --timeout={BOOT_SECONDS}s && {KUBECTL} uncordon {node}",
        seconds=BOOT_SECONDS + 60,
    )
