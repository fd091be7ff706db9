"""This machine: running its commands, reading its processes and mounts."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NewType

from onprem_mlops.errors import MlopsError, RequestError

Pid = NewType("Pid", int)


class HostCommandFailed(MlopsError):
    """A command on this machine ended with an error."""


def run(*command: str, stdin: str | None = None, timeout: float = 120) -> str:
    """Run a command on this machine and return its standard output.

    Raises HostCommandFailed with the command's last words; `timeout` is in seconds.
    """
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False, errors="replace"
        )
    except FileNotFoundError:
        raise RequestError(f"{command[0]} is not installed", "Install it, then run the command again.") from None
    except subprocess.TimeoutExpired:
        raise HostCommandFailed(f"no end after {timeout:.0f} s: {' '.join(command)}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-800:]
        raise HostCommandFailed(f"{' '.join(command)[:300]}: exit {done.returncode}: {said}")
    return done.stdout


def succeeds(*command: str) -> bool:
    """Whether a command on this machine ends with 0."""
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def require_root() -> None:
    """Raise RequestError unless this process may make mounts, bridges and control groups."""
    if os.geteuid() != 0:
        raise RequestError(
            "a lab boots nodes as containers, which needs root on this machine", "Run the command with sudo."
        )


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of this process's mount table."""

    target: Path
    kind: str
    options: frozenset[str]


def mounts() -> list[Mount]:
    """The mount table, in the order mounted."""
    return [_mount(line) for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def _mount(line: str) -> Mount:
    before, _, after = line.partition(" - ")
    kind, _, super_options = after.split(" ", 2)
    target = before.split(" ")[4].encode().decode("unicode_escape")
    return Mount(Path(target), kind, frozenset(super_options.split(",")))


def is_init_of_container(pid: Pid) -> bool:
    """Whether a process is number 1 of a process namespace right below this one: a booted node's init."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    numbers = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
    return len(numbers) == 2 and numbers[1] == "1" and "\nState:\tZ" not in status


def alive(pid: Pid) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def started_at(pid: Pid) -> float:
    """When a process started, in seconds since the epoch. Raises OSError if it is gone."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    boot = next(
        float(line.split()[1]) for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime ")
    )
    return boot + ticks / os.sysconf("SC_CLK_TCK")


def parent_process(pid: Pid) -> Pid | None:
    """The parent of a process, None if the process is gone."""
    try:
        return Pid(int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]))
    except OSError:
        return None


def command_line(pid: Pid) -> list[str]:
    """A process's arguments; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def wait_until(condition: Callable[[], bool], seconds: float, *, every: float = 0.1) -> bool:
    """Ask again until the condition holds; False if it did not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(every)
    return True


def remove_tree(folder: Path) -> None:
    """Remove a folder and all that is in it; nothing that is mounted there. No folder is no error.

    By a program of its own: a node's disks hold tens of thousands of folders, for which `shutil.rmtree` ran out of
    open files in this process.
    """
    run("rm", "-rf", "--one-file-system", "--", str(folder))
