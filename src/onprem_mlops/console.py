"""What a person sees of a run: one line a step when it ends, and what is running now."""

from __future__ import annotations

import difflib
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.measure import Measurement
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from onprem_mlops.engine.results import RunResult, StepResult
from onprem_mlops.events import (
    Diff,
    Event,
    NodeUnreachable,
    OperationDone,
    OperationStarted,
    RunStarted,
    StepDone,
    StepFailed,
    StepStarted,
)


class _Screen(Console):
    """What people read; they may stop (`| head`), and the command goes on to its end."""

    def on_broken_pipe(self) -> None:
        """Write nowhere from here on. rich would end the process here, and with it a deploy in the middle."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


# A file or another program has no width: lines that were broken for one could not be searched or copied.
console = _Screen(highlight=False, soft_wrap=not sys.stdout.isatty())
errors = _Screen(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())

ANY_WIDTH = 10_000
"""Columns that no table fills."""

NAMED = 12
"""How many of what was not run are named one by one; the log has all."""

COMMAND_WIDTH = 300
COMMAND_LINES = 3
"""Of a failed command; the log has all."""

_DIFF_STYLES = {"+": "green", "-": "red", "@": "cyan"}

STILL_SECONDS = 60
"""Where nothing is shown live, what runs is named that often."""


def print_table(table: Table, to: Console = console) -> None:
    """Print a table so that nothing of it is cut: folded to a terminal's width, elsewhere as wide as it is."""
    for column in table.columns:
        column.overflow = "fold"
    if not to.is_terminal:
        table.width = Measurement.get(to, to.options.update(max_width=ANY_WIDTH), table).maximum
    to.print(table, crop=False)


@dataclass(slots=True)
class _Doing:
    """The step that a node takes now, what it does there, since when it runs, and when that was said last."""

    step: str
    what: str = ""
    since: float = field(default_factory=time.monotonic)
    named: float = field(default_factory=time.monotonic)


class RunDisplay:
    """Listens to a run and shows it. On a terminal running steps are shown live; elsewhere only finished lines."""

    def __init__(self, to: Console = console) -> None:
        self._to = to
        self._begun = time.monotonic()
        self._running: dict[str, _Doing] = {}
        """By node, which takes one step at a time."""
        self._nodes: dict[str, list[str]] = defaultdict(list)
        self._changed: dict[str, int] = defaultdict(int)
        self._slowest: dict[str, float] = defaultdict(float)

    @contextmanager
    def showing(self) -> Iterator[RunDisplay]:
        """Show the live part while the run goes on."""
        if not self._to.file.isatty():
            ended = threading.Event()
            threading.Thread(target=self._name_what_runs, args=(ended,), daemon=True).start()
            try:
                yield self
            finally:
                ended.set()
            return
        with Live(console=self._to, refresh_per_second=4, transient=True, get_renderable=self._now):
            yield self

    def _now(self) -> Group:
        rows = [
            Spinner("dots", Text(f" {doing.step:<28} {node:<10} {doing.what}", style="dim"))
            for node, doing in sorted(self._running.items(), key=lambda one: one[1].step)
        ]
        return Group(*rows, Text(f"{time.monotonic() - self._begun:6.1f} s", style="dim"))

    def _name_what_runs(self, ended: threading.Event) -> None:
        while not ended.wait(STILL_SECONDS / 10):
            now = time.monotonic()
            for node, doing in list(self._running.items()):
                if now - doing.named >= STILL_SECONDS:
                    doing.named = now
                    what = escape(doing.what) or "reads, or waits for another node"
                    since = f"({now - doing.since:.0f} s, at {now - self._begun:.0f} s)"
                    self._to.print(f"[dim]… {doing.step:<28} {node}: {what} {since}[/dim]")

    def __call__(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._begin(event)
            case StepStarted():
                self._running[event.node] = _Doing(event.step)
            case OperationStarted():
                self._running[event.node].what = event.operation
            case OperationDone():
                self._changed[event.step] += 1
                self._running[event.node].what = ""
            case StepDone():
                self._end(event.step, event.node, event.seconds, f"→ {event.later}" if event.later else "")
            case StepFailed():
                self._failed(event)
            case NodeUnreachable():
                self._running.pop(event.node, None)
                self._to.print(f"[red]✘ {event.node} unreachable[/red] {escape(event.message)}")
                self._to.print(f"  {escape(event.advice)}")
            case _:
                pass

    def _begin(self, event: RunStarted) -> None:
        self._begun = time.monotonic()
        verb = "Plan" if event.planning else "Deploy"
        self._to.print(f"[bold]{verb} {event.phase}[/bold] on site {event.site}: {', '.join(event.nodes[:12])}")

    def _end(self, step: str, node: str, seconds: float, note: str) -> None:
        self._running.pop(node, None)
        self._nodes[step].append(node)
        self._slowest[step] = max(self._slowest[step], seconds)
        if any(doing.step == step for doing in self._running.values()):
            return
        changed = self._changed.pop(step, 0)
        who = ", ".join(self._nodes.pop(step)[:12])
        what = f"[yellow]{changed} changed[/yellow]" if changed else "[dim]as it should be[/dim]"
        since = time.monotonic() - self._begun
        self._to.print(
            f"[green]✔[/green] {step:<28} {what:<22} {who} [dim]{self._slowest.pop(step):.1f} s "
            f"(at {since:.0f} s){' ' + note if note else ''}[/dim]"
        )

    def _failed(self, event: StepFailed) -> None:
        self._running.pop(event.node, None)
        self._to.print(f"[red]✘ {event.step} on {event.node}[/red] {escape(event.operation)} ({event.seconds:.1f} s)")
        for line in event.output.splitlines():
            self._to.print(f"  [dim]│[/dim] {escape(line)}")
        self._to.print(f"  what to do: {escape(event.advice)}")
        if event.command:
            self._to.print(f"  [dim]command: {escape(_clipped(event.command))}[/dim]")


def show_plan(result: RunResult, to: Console = console) -> None:
    """Print what a plan found: per step and node each operation that would change something, with its diff."""
    for step in _by_step(result.steps):
        if step.outcome == "skipped":
            to.print(f"[dim]- {step.step} on {step.node}: {step.note}[/dim]")
            continue
        for change in step.changes:
            to.print(f"[yellow]~[/yellow] [bold]{step.step}[/bold] on {step.node}: {escape(change.operation)}")
            for diff in change.diffs:
                _show_diff(diff, to)
            if not change.diffs:
                for command in change.commands:
                    to.print(f"    $ {escape(_clipped(command))}")
        if step.outcome == "later":
            to.print(f"[cyan]?[/cyan] [bold]{step.step}[/bold] on {step.node}: the rest is known {step.note}")


def _clipped(command: str) -> str:
    """The first lines of a command, and how much there is more."""
    lines = command.splitlines()
    shown = "\n    ".join(_shortened(line) for line in lines[:COMMAND_LINES])
    more = len(lines) - COMMAND_LINES
    return f"{shown}\n    … {more} more lines, see the run's log" if more > 0 else shown


def _shortened(line: str) -> str:
    return line if len(line) <= COMMAND_WIDTH else f"{line[:COMMAND_WIDTH]} …"


def _by_step(steps: Iterable[StepResult]) -> list[StepResult]:
    order: dict[str, int] = {}
    for step in steps:
        order.setdefault(step.step, len(order))
    return sorted(steps, key=lambda one: (order[one.step], one.node))


def _show_diff(diff: Diff, to: Console) -> None:
    if diff.secret:
        to.print(f"    {diff.path}: secret content, not shown")
        return
    if diff.after is None:
        to.print(f"    {diff.path}: not shown: it is moved, or too large, or no text")
        return
    lines = difflib.unified_diff(
        (diff.before or "").splitlines(), diff.after.splitlines(), diff.path, diff.path, lineterm="", n=2
    )
    for line in lines:
        to.print(Text(f"    {line}", style=_DIFF_STYLES.get(line[:1], "")))


def show_summary(result: RunResult, to: Console = console) -> None:
    """Print the last lines of a run: what changed, what failed, what was not reached."""
    words = "would change" if result.planning else "changed"
    later = sum(1 for step in result.steps if step.outcome == "later")
    parts = [f"{result.changed} {words}", f"{len(result.failed)} failed", f"{len(result.unreachable)} unreachable"]
    if later:
        parts.append(f"{later} known later")
    if skipped := [f"{step.step} on {step.node}" for step in result.steps if step.outcome == "skipped"]:
        parts.append(f"{len(skipped)} not run")
        if not result.planning:
            more = f" and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
            to.print(f"[yellow]not run:[/yellow] {', '.join(skipped[:NAMED])}{more}")
    if result.log and (result.planning or not result.ok):
        to.print(f"the run's log: {result.log}")
    colour = "green" if result.ok else "red"
    to.print(f"[{colour}]{', '.join(parts)}[/{colour}] in {result.seconds:.1f} s")
