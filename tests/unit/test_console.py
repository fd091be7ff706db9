"""What a person sees of a run where nothing is shown live, such as in a log of CI."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from onprem_mlops import console
from onprem_mlops.console import RunDisplay, show_plan, show_summary
from onprem_mlops.engine.results import Change, RunResult, StepResult
from onprem_mlops.events import Diff, OperationStarted, RunStarted, StepFailed, StepStarted

SCRIPT = "\n".join(f"line {number}" for number in range(1, 61))


@pytest.fixture
def shown() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def to(shown: io.StringIO) -> Console:
    return Console(file=shown, highlight=False, soft_wrap=True)


def test_why_a_step_failed_stands_before_its_script(to: Console, shown: io.StringIO) -> None:
    why = "g1 stays as it is: " + "its pods may not leave it " * 5
    RunDisplay(to)(
        StepFailed(
            step="gpu.driver",
            node="g1",
            seconds=61.0,
            operation="no pod works on the node",
            command=SCRIPT,
            output=why,
            advice="Mend it.",
        )
    )
    lines = shown.getvalue().splitlines()
    assert lines[0] == "✘ gpu.driver on g1 no pod works on the node (61.0 s)"
    assert lines[1] == f"  │ {why}", "a line is broken where there is no terminal"
    assert lines[2] == "  what to do: Mend it."
    assert lines[3:] == [
        "  command: line 1",
        "    line 2",
        "    line 3",
        "    … 57 more lines, see the run's log",
    ]


def test_a_plan_shows_the_beginning_of_a_script(to: Console, shown: io.StringIO) -> None:
    change = Change("a script runs", (SCRIPT, "x" * 400), ())
    show_plan(RunResult("s", "p", True, steps=[StepResult("r.s", "n1", "done", 0.1, 1, (change,))]), to)
    assert "$ line 1\n    line 2\n    line 3\n    … 57 more lines" in shown.getvalue()
    assert "x" * 300 + " …\n" in shown.getvalue()


def test_a_plan_shows_whole_lines_of_a_file(to: Console, shown: io.StringIO) -> None:
    diff = Diff("/etc/file", "kept\nold\n", f"kept\n{'x' * 200}\n")
    change = Change("a file", (), (diff,))
    show_plan(RunResult("s", "p", True, steps=[StepResult("r.s", "n1", "done", 0.1, 1, (change,))]), to)
    assert shown.getvalue().splitlines()[4:] == ["     kept", "    -old", f"    +{'x' * 200}"]


def test_a_failed_run_says_where_its_log_is(to: Console, shown: io.StringIO) -> None:
    failed = StepResult("r.s", "n1", "failed", 0.1, 1, (), "why")
    show_summary(RunResult("s", "p", False, steps=[failed], log=Path("/runs/1/run.jsonl")), to)
    assert "the run's log: /runs/1/run.jsonl\n" in shown.getvalue()


def test_what_takes_long_is_named(to: Console, shown: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "STILL_SECONDS", 0.05)
    display = RunDisplay(to)
    with display.showing():
        display(RunStarted(site="s", phase="p", planning=False, steps=("gpu.modules",), nodes=("g1",)))
        display(StepStarted(step="gpu.modules", node="g1"))
        display(OperationStarted(step="gpu.modules", node="g1", operation="modules of driver 535"))
        end = time.monotonic() + 20
        while "… gpu.modules" not in shown.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
    assert "… gpu.modules                  g1: modules of driver 535 (0 s, at 0 s)" in shown.getvalue()
