"""pyinfra's connection to a node, over our framed shell."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from pyinfra.api.command import StringCommand
from pyinfra.api.exceptions import ConnectError
from pyinfra.connectors.base import BaseConnector
from pyinfra.connectors.util import CommandOutput, OutputLine, extract_control_arguments, make_unix_command

from onprem_mlops.errors import MlopsError
from onprem_mlops.shell import Connection, Endpoint

ENDPOINT = "onprem_mlops.endpoint"
"""Key of the node's Endpoint in pyinfra's `host.connector_data`."""


class FramedConnector(BaseConnector):
    """Runs commands in the node's one long-lived shell. The shell is root's already, so pyinfra's sudo is left out."""

    handles_execution = True
    connection: Connection

    @staticmethod
    def make_names_data(name: str) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
        """Hosts come from the site, never from a `@connector/name` of pyinfra's command line."""
        yield name, {}, []

    def connect(self) -> None:
        endpoint: Endpoint = self.host.connector_data[ENDPOINT]
        self.connection = Connection(endpoint)
        try:
            self.connection.connect()
        except MlopsError as error:
            raise ConnectError(error.message) from error

    def disconnect(self) -> None:
        self.connection.close()

    def run_shell_command(
        self,
        command: StringCommand | str,
        print_output: bool = False,
        print_input: bool = False,
        **arguments: Any,
    ) -> tuple[bool, CommandOutput]:
        control = extract_control_arguments(arguments)  # type: ignore[arg-type]
        for key in ("_sudo", "_sudo_user", "_sudo_password"):
            arguments.pop(key, None)
        line = _line(command, arguments)
        done = self.connection.run(line, stdin=_stdin(control.get("_stdin")), timeout=control.get("_timeout"))
        lines = [OutputLine("stdout", one) for one in done.text.splitlines()]
        lines += [OutputLine("stderr", one) for one in done.error_text.splitlines()]
        accepted = control.get("_success_exit_codes") or [0]
        return done.status in accepted, CommandOutput(lines)

    def put_file(  # type: ignore[override] # pyinfra spells out every argument; we take them as they come
        self,
        filename_or_io: str | IO[Any],
        remote_filename: str,
        remote_temp_filename: str | None = None,
        print_output: bool = False,
        print_input: bool = False,
        **arguments: Any,
    ) -> bool:
        data = Path(filename_or_io).read_bytes() if isinstance(filename_or_io, str) else filename_or_io.read()
        source = BytesIO(data.encode() if isinstance(data, str) else data)
        target = StringCommand("umask 077; cat >", remote_filename).get_raw_value()
        done = self.connection.stream(target, source)
        return done.status == 0

    def get_file(  # type: ignore[override]
        self,
        remote_filename: str,
        filename_or_io: str | IO[Any],
        remote_temp_filename: str | None = None,
        print_output: bool = False,
        print_input: bool = False,
        **arguments: Any,
    ) -> bool:
        done = self.connection.run(StringCommand("cat", remote_filename).get_raw_value())
        if isinstance(filename_or_io, str):
            Path(filename_or_io).write_bytes(done.stdout)
        else:
            shutil.copyfileobj(BytesIO(done.stdout), filename_or_io)
        return done.status == 0


def _line(command: StringCommand | str, arguments: dict[str, Any]) -> str:
    """The shell line. Without environment, folder or other user it is the command itself: no second `sh`."""
    plain = command if isinstance(command, StringCommand) else StringCommand(command)
    if any(arguments.get(key) for key in ("_env", "_chdir", "_su_user", "_doas")):
        wrapped: str = make_unix_command(plain, **arguments).get_raw_value()
        return wrapped
    raw: str = plain.get_raw_value()
    return raw


def _stdin(given: Any) -> str | None:
    if given is None or isinstance(given, str):
        return given
    return "\n".join(given) if isinstance(given, (list, tuple)) else str(given)
