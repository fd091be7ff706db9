"""The lock on a node, held by a real `sh` with the real `flock`: no node needed, the frame is the same."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import gevent
import pytest

from onprem_mlops.engine import run as engine
from onprem_mlops.engine.run import Run
from onprem_mlops.errors import RequestError
from onprem_mlops.events import Event, StepStarted
from onprem_mlops.shell import Completed, Unreachable, _ended, _frame

WORD = "0123456789abcdef01234567"


class Shell:
    """The long-lived shell of one run on the node, as its connection keeps it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            ["sh", "-s"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def hold(self, script: str, *, expect: str) -> Completed:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(_frame(script, None, WORD, inside=True).encode())
        self.process.stdin.flush()
        begin, end, said = f"<{WORD}>\n".encode(), f"\n>{WORD} ".encode(), bytearray()
        while not _ended(said, end):
            said += os.read(self.process.stdout.fileno(), 4096)
        return Completed(0, bytes(said).partition(begin)[2].rpartition(end)[0], b"")

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def shells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Shell]]:
    monkeypatch.setattr(engine, "LOCK", str(tmp_path / "lock"))
    made: list[Shell] = []

    def make() -> Shell:
        made.append(Shell())
        return made[-1]

    yield make
    for one in made:
        one.end()


def lock(shell: Shell, events: list[Event] | None = None) -> None:
    """Take the lock of node w1 as a run does."""
    run = Run.__new__(Run)
    run._listener = (events if events is not None else []).append
    run._lock("w1", cast("Any", shell))


def as_process(monkeypatch: pytest.MonkeyPatch, number: int, shell: Shell, host: str | None = None) -> None:
    """Take the lock as another run, in the process of that number."""
    with monkeypatch.context() as other:
        other.setattr("os.getpid", lambda: number)
        if host is not None:
            other.setattr("socket.gethostname", lambda: host)
        lock(shell)


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_another_run_is_refused_with_the_holders_name(
    shells: Callable[[], Shell], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_process(monkeypatch, os.getppid(), shells())
    with pytest.raises(RequestError, match=rf"w1: \S+ on \S+ \(process {os.getppid()}\) holds the site since \d\d:"):
        lock(shells())


def test_another_controllers_process_counts_as_alive(
    shells: Callable[[], Shell], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_process(monkeypatch, dead_process(), shells(), host="deployer-2")
    with pytest.raises(RequestError, match="on deployer-2"):
        lock(shells())


def test_the_lock_ends_with_its_shell(shells: Callable[[], Shell], monkeypatch: pytest.MonkeyPatch) -> None:
    holder = shells()
    as_process(monkeypatch, os.getppid(), holder)
    holder.end()
    lock(shells())


def test_a_killed_runs_last_command_is_waited_for(shells: Callable[[], Shell], monkeypatch: pytest.MonkeyPatch) -> None:
    holder, events, begun = shells(), cast("list[Event]", []), time.monotonic()
    as_process(monkeypatch, dead_process(), holder)
    gevent.spawn_later(0.5, holder.end)
    lock(shells(), events)
    assert time.monotonic() - begun >= 0.5
    assert [type(one) for one in events] == [StepStarted], "it says once that it waits"


def test_a_command_that_never_ends_is_not_waited_for_for_ever(
    shells: Callable[[], Shell], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_process(monkeypatch, dead_process(), shells())
    monkeypatch.setattr(engine, "LOCK_WAIT_SECONDS", 1)
    with pytest.raises(Unreachable, match="has not ended in 1 s"):
        lock(shells())
