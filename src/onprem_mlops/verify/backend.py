"""testinfra over the framed shell: the one place that registers with testinfra.

testinfra's own ssh backend starts an ``ssh`` process a command; ours feeds the shell that is already there, over the
connection whose host key is pinned.
"""

from __future__ import annotations

from typing import Any

import testinfra.backend
import testinfra.host
from testinfra.backend import base

from onprem_mlops.shell import Connection, HostKeyMismatch, Unreachable
from onprem_mlops.site import Node
from onprem_mlops.verify.outcomes import NotChecked

COMMAND_SECONDS = 30.0
"""How long a check's command may take on a node."""


class FramedBackend(base.BaseBackend):  # type: ignore[misc]
    """Runs testinfra's commands in the node's one long-lived shell, as root."""

    NAME = "framed"

    def __init__(self, hostname: str, connection: Connection | None = None, **kwargs: Any) -> None:
        super().__init__(hostname, **kwargs)
        if connection is None:
            raise RuntimeError("the framed backend needs a connection: use NodeHost")
        self._connection = connection
        # Asking the node for its encoding starts python there; Debian nodes speak UTF-8.
        self._encoding = "utf-8"

    def run(self, command: str, *args: str, **kwargs: Any) -> base.CommandResult:
        """Run a command; arguments are quoted for the shell."""
        line = self.get_command(command, *args)
        done = self._connection.run(line, stdin=kwargs.get("stdin"), timeout=kwargs.get("timeout", COMMAND_SECONDS))
        return self.result(done.status, line.encode(), done.stdout, done.stderr)

    def decode(self, data: bytes) -> str:
        """Text of a stream; what is not UTF-8 is shown as replacement characters, never an error of the check."""
        return data.decode(errors="replace")


testinfra.backend.BACKENDS[FramedBackend.NAME] = f"{__name__}.{FramedBackend.__name__}"


class NodeHost(testinfra.host.Host):  # type: ignore[misc]
    """testinfra's view of a node (``.file()``, ``.service()``, ``.run()`` …), and the node's entry in the site file."""

    def __init__(self, connection: Connection, site_node: Node) -> None:
        backend = FramedBackend(site_node.name, connection)
        super().__init__(backend)
        backend.set_host(self)
        self.site_node = site_node
        self._connection = connection
        self._refusal: NotChecked | None = None

    @property
    def name(self) -> str:
        """The node's name in the site file."""
        return self.site_node.name

    @property
    def address(self) -> str:
        """The node's address in the site file."""
        return str(self.site_node.address)

    def connect(self) -> None:
        """Connect if that was not done yet. NotChecked if the node cannot be reached; then it is not tried again."""
        if self._refusal is not None:
            raise self._refusal
        if self._connection.connected:
            return
        try:
            self._connection.connect()
        except (Unreachable, HostKeyMismatch) as error:
            self._refusal = NotChecked(error.message, error.advice)
            raise self._refusal from None

    def check_output(self, command: str, *args: str, **kwargs: Any) -> str:
        """What a command prints, without the last newline. AssertionError, short enough to read, if it fails."""
        done = self.run(command, *args, **kwargs)
        if done.rc != 0:
            said = (done.stderr or done.stdout).strip()[-400:] or "nothing"
            raise AssertionError(f"{self.name}: `{done.command.decode()[:200]}` ended with {done.rc} and said: {said}")
        return str(done.stdout).rstrip("\r\n")

    def lines(self, command: str, *args: str) -> list[str]:
        """Lines a command prints. AssertionError if it fails."""
        return self.check_output(command, *args).splitlines()

    def feed(self, command: str, stdin: str, timeout: float = COMMAND_SECONDS) -> base.CommandResult:
        """Run a command with text on its standard input."""
        return self.run(command, stdin=stdin, timeout=timeout)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
