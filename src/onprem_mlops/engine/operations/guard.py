"""Changes that could cut the controller off from its node: made on trial, kept only once a new connection stands.

The node itself takes the change back after a while unless it is told not to, so that neither a broken rule nor a dead
controller leaves a node that nobody can reach.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyinfra.api.command import StringCommand
from pyinfra.connectors.util import CommandOutput, OutputLine

from onprem_mlops.engine.connector import ENDPOINT
from onprem_mlops.engine.operation import Command
from onprem_mlops.errors import MlopsError
from onprem_mlops.events import Diff
from onprem_mlops.shell import Connection, Endpoint

if TYPE_CHECKING:
    from pyinfra.api.host import Host
    from pyinfra.api.state import State

FOLDER = "/run/onprem-mlops"
TRIAL_SECONDS = 60
RECONNECT_SECONDS = 25
"""How long the controller tries to open a new connection: well within the trial."""

_ARM = """\
set -e
umask 077
mkdir -p {folder}
# An earlier run may have died during its trial: what it tried was never proven, so it goes first.
if systemctl -q is-active {unit}.timer; then sh {undo}; systemctl stop {unit}.timer; fi
( {prepare} ) || exit 1
printf '%s\\n' {undo_text} >{undo}
systemctl reset-failed {unit}.service {unit}.timer 2>/dev/null || true
systemd-run -q --collect --unit={unit} --on-active={seconds} --timer-property=AccuracySec=1s /bin/sh {undo}
if ! ( {apply} ); then sh {undo}; systemctl stop {unit}.timer; exit 1; fi
"""

_KEEP = """\
set -e
systemctl stop {unit}.timer 2>/dev/null || true
if ! ( {holds} ); then
  echo 'the change is not what it was to be, or the node took it back because the controller was too slow; undone' >&2
  sh {undo}
  exit 1
fi
# What is in force but would not last (a full disk) would be gone after a boot, with nobody there to see it.
if ! ( {keep} ); then sh {undo}; exit 1; fi
rm -f {undo}
"""


def endpoint_of(host: Host) -> Endpoint:
    """Where and as whom a pyinfra host is reached. Raises MlopsError if its connector is not ours."""
    endpoint = host.connector_data.get(ENDPOINT)
    if not isinstance(endpoint, Endpoint):
        raise MlopsError(f"{host.name}: this operation needs the connector of onprem_mlops")
    return endpoint


def output(text: str, *, error: bool = False) -> CommandOutput:
    """Text as pyinfra's commands return it."""
    return CommandOutput([OutputLine("stderr" if error else "stdout", line) for line in text.splitlines()])


class Reconnect(Command):
    """The controller opens a new SSH connection; if it cannot, the trial is taken back at once if possible."""

    def __init__(self, undo: str, what: str, *, seconds: int = RECONNECT_SECONDS) -> None:
        super().__init__(f": the controller opens a new connection within {seconds} s")
        self._undo = undo
        self._what = what
        self._seconds = seconds

    def carry_out(self, state: State, host: Host, connector_arguments: Any) -> tuple[bool, CommandOutput]:
        """Success, and why not if not."""
        why = _new_connection(endpoint_of(host), self._seconds)
        if why is None:
            return True, output("")
        try:
            taken_back, _ = host.run_shell_command(StringCommand(self._undo), _timeout=10)
        except MlopsError:
            taken_back = False
        now = "was taken back" if taken_back else f"takes itself back within {TRIAL_SECONDS} s"
        return False, output(f"{self._what} would lock the controller out and {now}: {why}", error=True)


def _new_connection(endpoint: Endpoint, seconds: int) -> str | None:
    """None once a new connection stood and ran a command; else what the last try met."""
    end = time.monotonic() + seconds
    while True:
        connection = Connection(endpoint)
        try:
            connection.connect()
            if connection.run("true", timeout=10).status == 0:
                return None
            why = "the new connection runs no command"
        except MlopsError as error:
            why = error.message
        finally:
            connection.close()
        if time.monotonic() >= end:
            return why
        time.sleep(1)


def on_trial(
    name: str,
    what: str,
    *,
    prepare: str,
    apply: str,
    undo: str,
    holds: str,
    keep: str = ":",
    stdin: str | None = None,
    diff: Diff | None = None,
) -> Iterator[Command]:
    """The commands of one change on trial, to `yield from` in an operation.

    Each piece of shell is one list joined with `&&`: what counts is its exit status, and `set -e` does not see a
    failure in the middle of such a list. Only `undo` goes on past what fails.

    Args:
        name: names the node's timer (`onprem-<name>-trial`).
        what: the change, in words, for the error if it would lock the controller out.
        prepare: shell; saves what is there now and puts what is new beside it; reads `stdin`.
        apply: shell; makes the change. If it fails, the change is undone at once.
        undo: shell; brings back what `prepare` saved. Must stand being run twice.
        holds: shell test; whether the change is in force (not if the node took it back meanwhile).
        keep: shell; makes the proven change last.
        stdin: text for `prepare`; never shown.
        diff: what changes.
    """
    unit = f"onprem-{name}-trial"
    values = {
        "folder": FOLDER,
        "unit": unit,
        "undo": f"{FOLDER}/{name}.undo",
        "undo_text": shlex.quote(undo),
        "seconds": TRIAL_SECONDS,
        "prepare": prepare,
        "apply": apply,
        "holds": holds,
        "keep": keep,
    }
    # Twice the trial: if the change cuts this very session off, its answer comes once the node has undone it.
    yield Command(_ARM.format(**values), stdin=stdin, diff=diff, timeout=TRIAL_SECONDS * 2 + 60)
    yield Reconnect(f"sh {FOLDER}/{name}.undo && systemctl stop {unit}.timer", what)
    yield Command(_KEEP.format(**values), timeout=60)


def pending(name: str) -> str:
    """A reading command that succeeds while a change is on trial (an earlier run died before it was proven)."""
    return f"systemctl -q is-active onprem-{name}-trial.timer"
