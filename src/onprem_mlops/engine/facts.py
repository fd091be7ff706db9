"""What is read from nodes. A fact changes nothing and is remembered until something is executed on its node."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from pyinfra.api.command import StringCommand
from pyinfra.api.exceptions import FactProcessError
from pyinfra.api.facts import FactBase
from pyinfra.api.host import Host
from pyinfra.context import host

T = TypeVar("T")


class Reading(FactBase[T]):
    """A fact of ours: one command that only reads, as root, and always ends well.

    pyinfra works out each fact's connection arguments anew (sudo, shell, environment: half of a plan's time with many
    nodes); ours have none.
    """

    @classmethod
    def read(cls, node: Host, **arguments: Any) -> T:
        """Run the fact's command on a node."""
        fact = cls()
        well, output = node.run_shell_command(StringCommand(fact.command(**arguments)))
        if not well:
            raise FactProcessError(f"{cls.__name__} {arguments}: {output.stderr or output.stdout}")
        lines = output.stdout_lines
        return fact.process(lines) if lines else fact.default()


@dataclass(frozen=True, slots=True)
class Probed:
    """Exit status and standard output of a command that only reads."""

    status: int
    text: str

    @property
    def ok(self) -> bool:
        return self.status == 0


class Probe(Reading[Probed]):
    """Exit status and output of any reading command. Its standard error is dropped."""

    def command(self, command: str) -> str:
        return f"( {command}\n) 2>/dev/null; printf '\\n=%d\\n' $?"

    def process(self, output: Iterable[str]) -> Probed:
        lines = list(output)
        status = lines.pop()
        if lines and lines[-1] == "":
            lines.pop()
        return Probed(int(status.removeprefix("=")), "\n".join(lines))

    @staticmethod
    def default() -> Probed:
        # Only a connector that answers nothing (pyinfra's fake one) leads here: nothing is there.
        return Probed(127, "")


@dataclass(frozen=True, slots=True)
class FileState:
    """A path on a node. `kind` is "file", "directory", "link", "other" or "absent"; sha256 only for files."""

    kind: str
    mode: str = ""
    owner: str = ""
    group: str = ""
    size: int = 0
    sha256: str = ""
    target: str = ""


SHA256 = "{ if command -v openssl >/dev/null; then openssl dgst -sha256 -r; else sha256sum; fi; }"
"""Shell: the checksum of standard input, for what is large. openssl uses the processor's instructions for it, at a
seventh of the time; it is slower to start."""

_KINDS = {
    "regular file": "file",
    "regular empty file": "file",
    "directory": "directory",
    "symbolic link": "link",
}


class File(Reading[FileState]):
    """One path: what it is, whose, and for a regular file its checksum, in one command."""

    def command(self, path: str) -> str:
        quoted = shlex.quote(path)
        return (
            f"if stat -c '%F|%a|%U|%G|%s' {quoted} 2>/dev/null; then "
            f"if [ -h {quoted} ]; then readlink {quoted}; "
            f"elif [ -f {quoted} ]; then if [ $(stat -c %s {quoted}) -gt 1000000 ]; "
            f"then {SHA256} <{quoted}; else sha256sum <{quoted}; fi; fi; fi"
        )

    def process(self, output: Iterable[str]) -> FileState:
        lines = [line for line in output if line]
        if not lines:
            return FileState("absent")
        kind, mode, owner, group, size = lines[0].split("|")
        detail = lines[1] if len(lines) > 1 else ""
        name = _KINDS.get(kind, "other")
        return FileState(
            kind=name,
            mode=mode,
            owner=owner,
            group=group,
            size=int(size),
            sha256=detail.split()[0] if name == "file" and detail else "",
            target=detail if name == "link" else "",
        )

    @staticmethod
    def default() -> FileState:
        return FileState("absent")


class FileText(Reading[str | None]):
    """A file's content as text, for diffs; None if it is absent or not text."""

    def command(self, path: str) -> str:
        quoted = shlex.quote(path)
        return f"if [ -f {quoted} ]; then echo found; base64 -w0 <{quoted}; echo; fi"

    def process(self, output: Iterable[str]) -> str | None:
        lines = list(output)
        if not lines or lines[0] != "found":
            return None
        try:
            return base64.b64decode(lines[1] if len(lines) > 1 else "").decode()
        except UnicodeDecodeError:
            return None

    @staticmethod
    def default() -> None:
        return None


class Packages(Reading[dict[str, str]]):
    """Installed Debian packages and their versions, and `held` ones under the key `held:<name>`."""

    def command(self) -> str:
        return "dpkg-query -W -f '${db:Status-Abbrev}|${Package}|${Version}\\n'"

    def process(self, output: Iterable[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for line in output:
            status, name, version = line.split("|")
            if status[1] == "i":
                found[name] = version
            if status[0] == "h":
                found[f"held:{name}"] = version
        return found

    @staticmethod
    def default() -> dict[str, str]:
        return {}


@dataclass(frozen=True, slots=True)
class UnitState:
    """A systemd unit. `started` and `reloaded` are seconds since the epoch, 0 if it is not running."""

    load: str
    active: str
    enabled: str
    stale: bool
    """Whether its unit file changed since systemd read it (needs `daemon-reload`)."""
    started: float
    reloaded: float = 0.0
    """When its last reload ended well; its start if none did, or if the last one failed."""


class Unit(Reading[UnitState]):
    """One systemd unit's state."""

    def command(self, unit: str) -> str:
        state = "LoadState,ActiveState,UnitFileState,NeedDaemonReload"
        when = "ActiveEnterTimestamp,StateChangeTimestamp,ReloadResult"
        # The start with microseconds, so that a file written in the same second as the start is seen as newer.
        # systemd's own NeedDaemonReload does not see a first drop-in: the newest file is compared with the last reload.
        quoted, own = shlex.quote(unit), shlex.quote(f"/etc/systemd/system/{unit}")
        return (
            f"systemctl show --timestamp=us+utc -p {state},{when} {quoted}; "
            "systemctl show --timestamp=us+utc -p UnitsLoadTimestamp; "
            f"stat -c Newest=%.6Z {own} {own}.d {own}.d/* 2>/dev/null | LC_ALL=C sort; true"
        )

    def process(self, output: Iterable[str]) -> UnitState:
        values = dict(line.split("=", 1) for line in output if "=" in line)
        unread = float(values.get("Newest", 0)) > _epoch(values.get("UnitsLoadTimestamp", "")) > 0
        # A reload that failed leaves the service active, and with what it had.
        read_again = "StateChangeTimestamp" if values.get("ReloadResult") == "success" else "ActiveEnterTimestamp"
        return UnitState(
            load=values.get("LoadState", "not-found"),
            active=values.get("ActiveState", "inactive"),
            enabled=values.get("UnitFileState", ""),
            stale=unread or values.get("NeedDaemonReload") == "yes",
            started=_epoch(values.get("ActiveEnterTimestamp", "")),
            reloaded=_epoch(values.get(read_again, "")),
        )

    @staticmethod
    def default() -> UnitState:
        return UnitState("not-found", "inactive", "", False, 0.0)


def _epoch(stamp: str) -> float:
    """Seconds since the epoch of systemd's `Sun 2026-11-22 14:55:16.123456 UTC`; 0 for none."""
    from datetime import UTC, datetime

    if not stamp or stamp == "n/a":
        return 0.0
    return datetime.strptime(stamp.split(" ", 1)[1], "%Y-%m-%d %H:%M:%S.%f UTC").replace(tzinfo=UTC).timestamp()


class NewestChange(Reading[float]):
    """When the newest of some paths last changed (inode change time, seconds since the epoch; 0 if none is there).

    The inode's change time, not the modification time: an upload that keeps old times is a change all the same.
    """

    def command(self, paths: tuple[str, ...]) -> str:
        return "stat -L -c %.6Z " + " ".join(shlex.quote(path) for path in paths) + " 2>/dev/null; true"

    def process(self, output: Iterable[str]) -> float:
        return max((float(line) for line in output if line), default=0.0)

    @staticmethod
    def default() -> float:
        return 0.0


def fact(kind: type[FactBase[Any]], **arguments: Any) -> Any:
    """Read a fact of the node that the current step runs on."""
    return host.get_fact(kind, **arguments)


def probe(command: str) -> Probed:
    """Run a command that only reads, on the node that the current step runs on; remembered until a change."""
    result: Probed = host.get_fact(Probe, command=command)
    return result


def file_state(path: str) -> FileState:
    """A path on the node that the current step runs on."""
    result: FileState = host.get_fact(File, path=path)
    return result
