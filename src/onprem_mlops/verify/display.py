"""What a person sees of a verification: how far it is, then a table, then what is wrong and what to do."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from onprem_mlops.console import print_table
from onprem_mlops.verify.results import Check, Outcome, VerifyResult

COLUMNS = 8
"""Nodes that get a column of their own; on a larger site those where all is well share one."""

_SIGNS: dict[Outcome, tuple[str, str]] = {"failed": ("✘", "red"), "not_checked": ("?", "yellow")}
_MESSAGE_LINES = 12
_TOGETHER = 5


class VerifyDisplay:
    """Listens to a verification. On a terminal it shows what is running; elsewhere only what is wrong."""

    def __init__(self, to: Console) -> None:
        self._to = to
        self._begun = time.monotonic()
        self._running: dict[str, None] = {}
        self._made = 0
        self._causes: set[tuple[str, str]] = set()

    @contextmanager
    def showing(self) -> Iterator[VerifyDisplay]:
        """Show the live part while the verification goes on."""
        self._begun = time.monotonic()
        if not self._to.file.isatty():
            yield self
            return
        with Live(console=self._to, refresh_per_second=4, transient=True, get_renderable=self._now):
            yield self

    def __call__(self, message: dict[str, Any]) -> None:
        match message["kind"]:
            case "unit_started":
                self._running[message["unit"]] = None
            case "unit_done":
                self._running.pop(message["unit"], None)
            case "check":
                self._made += 1
                self._tell(message)

    def _tell(self, message: dict[str, Any]) -> None:
        # As it happens: a person who waits wants to know at once that something is wrong. What keeps many checks from
        # being made is told with the first of them.
        cause = (message["outcome"], message["message"])
        if message["outcome"] in _SIGNS and (message["outcome"] == "failed" or cause not in self._causes):
            self._causes.add(cause)
            sign, colour = _SIGNS[message["outcome"]]
            where = message["node"] or "site"
            self._to.print(
                f"[{colour}]{sign}[/{colour}] {message['role']} {where}: {escape(message['name'])}", soft_wrap=True
            )

    def _now(self) -> Group:
        rows = [Spinner("dots", Text(f" {name}", style="dim")) for name in list(self._running)]
        since = time.monotonic() - self._begun
        return Group(*rows, Text(f"{self._made} checked, {since:.0f} s", style="dim"))


def show(result: VerifyResult, to: Console) -> None:
    """Print the table, what is wrong, and the sum."""
    print_table(_table(result), to)
    for check in result.of("passed"):
        if check.message:
            to.print(f"[dim]{check.role}: {escape(check.name)}: {escape(check.message)}[/dim]", soft_wrap=True)
    for check in result.of("failed"):
        _show_check(check, to)
    causes: dict[tuple[str, str], list[Check]] = {}
    for check in result.of("not_checked"):
        causes.setdefault((check.message, check.advice), []).append(check)
    for together in causes.values():
        _show_not_checked(together, to)
    _show_sum(result, to)


def _table(result: VerifyResult) -> Table:
    nodes = list(dict.fromkeys(check.node for check in sorted(result.checks, key=lambda one: one.node) if check.node))
    apart = nodes if len(nodes) <= COLUMNS else [node for node in nodes if _is_wrong(result, node)][:COLUMNS]
    rest = [node for node in nodes if node not in apart]
    table = Table(title=f"Verify {', '.join(result.phases)} of site {result.site}", title_justify="left")
    table.add_column("role")
    groups = [("site", [""]), *((node, [node]) for node in apart)]
    if rest:
        groups.append((f"{len(rest)} others" if apart else f"{len(rest)} nodes", rest))
    for title, _ in groups:
        table.add_column(title, justify="right")
    for role in sorted({check.role for check in result.checks}):
        table.add_row(role, *(_cell(result, role, members) for _, members in groups))
    return table


def _is_wrong(result: VerifyResult, node: str) -> bool:
    return any(check.node == node and check.outcome in _SIGNS for check in result.checks)


def _cell(result: VerifyResult, role: str, nodes: Sequence[str]) -> str:
    outcomes = [check.outcome for check in result.checks if check.role == role and check.node in nodes]
    if not outcomes:
        return "[dim]–[/dim]"
    passed = outcomes.count("passed")
    parts = [f"[green]{passed} ✔[/green]"] if passed else []
    for outcome, (sign, colour) in _SIGNS.items():
        if count := outcomes.count(outcome):
            parts.append(f"[{colour}]{count} {sign}[/{colour}]")
    return " ".join(parts) or "[dim]does not apply[/dim]"


def _show_not_checked(checks: Sequence[Check], to: Console) -> None:
    """Checks that one cause kept from being made: the cause once."""
    sign, colour = _SIGNS["not_checked"]
    to.print()
    for check in checks[:_TOGETHER]:
        to.print(f"[{colour}]{sign} {check.role} {check.where}[/{colour}] {escape(check.name)}", soft_wrap=True)
    if len(checks) > _TOGETHER:
        to.print(f"[{colour}]{sign}[/{colour}] … and {len(checks) - _TOGETHER} more")
    _show_message(checks[0], to)


def _show_check(check: Check, to: Console) -> None:
    sign, colour = _SIGNS[check.outcome]
    title = f"[{colour}]{sign} {check.role} {check.where}[/{colour}] [bold]{escape(check.name)}[/bold]"
    to.print(f"\n{title}", soft_wrap=True)
    _show_message(check, to)


def _show_message(check: Check, to: Console) -> None:
    lines = check.message.splitlines()
    for line in lines[:_MESSAGE_LINES]:
        to.print(f"  {escape(line)}", soft_wrap=True)
    if len(lines) > _MESSAGE_LINES:
        to.print(f"  [dim]… {len(lines) - _MESSAGE_LINES} more lines, in the file of --json[/dim]")
    if check.advice:
        to.print(f"  what to do: {escape(check.advice)}", soft_wrap=True)


def _show_sum(result: VerifyResult, to: Console) -> None:
    colour = {0: "green", 1: "red", 2: "yellow"}[result.exit_code]
    parts = [f"{result.passed} of {result.checked} checks hold"]
    if result.failed:
        parts.append(f"{result.failed} do not")
    if result.not_checked:
        parts.append(f"{result.not_checked} could not be checked")
    to.print(f"[{colour}]{', '.join(parts)}[/{colour}] in {result.seconds:.1f} s")
