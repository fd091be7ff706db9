"""The test tiers: lint and types → unit → roles → lab. A tier that cannot run fails, unless left out by name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass

from onprem_mlops.console import console
from onprem_mlops.errors import MlopsError, RequestError
from onprem_mlops.paths import REPOSITORY
from onprem_mlops.prerequisites import require

PYTHON = sys.executable
PYTEST = (PYTHON, "-m", "pytest", "-p", "no:cacheprovider")
BY_LAB = ("--dist", "loadscope", "--no-loadscope-reorder")
"""What shares a lab runs in one process (tests/lab/conftest.py says what does), the longest first."""


@dataclass(frozen=True, slots=True)
class Tier:
    """One tier: what it proves, and its commands."""

    name: str
    proves: str
    commands: tuple[tuple[str, ...], ...]
    needs_nodes: bool = False
    tools: tuple[str, ...] = ()
    """Commands that it needs from the operating system."""


TIERS = (
    Tier(
        "lint",
        "style and types",
        (
            (PYTHON, "-m", "ruff", "check", "."),
            (PYTHON, "-m", "ruff", "format", "--check", "."),
            (PYTHON, "-m", "mypy"),
        ),
    ),
    Tier(
        "unit",
        "the framework, without a node",
        ((*PYTEST, "tests/unit", "-n", "2", "-q"),),
        tools=("age", "ssh-keygen"),
    ),
    Tier("roles", "roles as data: settings + facts → commands", ((*PYTEST, "tests/roles", "-n", "2", "-q"),)),
    Tier(
        "lab",
        "real nodes, end to end",
        (
            # What is missing is made here, with its progress shown; no test waits half an hour for it in silence.
            (PYTHON, "-m", "onprem_mlops", "mirror", "build"),
            (PYTHON, "-m", "onprem_mlops", "mirror", "build", "debs-trixie", "lab-rootfs-trixie"),
            # Two labs side by side: each alone leaves a quarter of two cores idle.
            (*PYTEST, "tests/lab", "-v", "-n", "2", *BY_LAB, "--durations=25"),
        ),
        needs_nodes=True,
        tools=("systemd-nspawn", "ip", "nft"),
    ),
)


@dataclass(slots=True)
class Count:
    """What ran in a tier."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    problem: str = ""

    @property
    def is_bad(self) -> bool:
        """Whether something failed, or the tier could not run."""
        return bool(self.failed or self.problem)


def run_tiers(chosen: list[str] | None, without: list[str]) -> dict[str, Count]:
    """Run tiers in order, stop after the first that fails, print and return the count of what ran."""
    names = [tier.name for tier in TIERS]
    for name in (*(chosen or ()), *without):
        if name not in names:
            raise RequestError(f"there is no tier {name!r}", f"Tiers: {', '.join(names)}.")
    counts: dict[str, Count] = {}
    for tier in TIERS:
        if (chosen and tier.name not in chosen) or tier.name in without:
            continue
        console.rule(f"{tier.name}: {tier.proves}")
        counts[tier.name] = _run(tier)
        if counts[tier.name].is_bad:
            break
    _report(counts, without)
    return counts


def _run(tier: Tier) -> Count:
    count = Count()
    started = time.monotonic()
    if problem := _why_not(tier):
        count.problem = f"{problem}; or leave the tier out: --without {tier.name}"
        return count
    for command in tier.commands:
        _one(command, count)
        if tier.needs_nodes and count.is_bad:
            break
    count.seconds = time.monotonic() - started
    return count


def _one(command: tuple[str, ...], count: Count) -> None:
    is_pytest = "pytest" in command
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        last = ""
        for line in process.stdout or ():
            console.out(line, end="", highlight=False)
            last = line if line.strip() else last
        status = process.wait()
    if not is_pytest:
        count.passed, count.failed = count.passed + (status == 0), count.failed + (status != 0)
        return
    found = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?|skipped)", last)}
    count.passed += found.get("passed", 0)
    count.failed += found.get("failed", 0) + found.get("error", 0) + found.get("errors", 0)
    count.skipped += found.get("skipped", 0)
    if status != 0 and not count.failed:
        count.problem = f"pytest ended with status {status}"
    elif not count.passed:
        count.problem = "no test ran"


def _why_not(tier: Tier) -> str:
    """Why a tier cannot run on this machine; empty if it can. What is missing is installed, if that may be."""
    if tier.needs_nodes and os.geteuid() != 0:
        return f"tier {tier.name} boots nodes and needs root; run it as root"
    try:
        require(*tier.tools)
    except MlopsError as error:
        return f"{error.message}; {error.advice}"
    return ""


def _report(counts: dict[str, Count], without: list[str]) -> None:
    console.rule("what ran")
    for name, count in counts.items():
        state = f"[red]{count.problem}[/red]" if count.problem else ""
        console.print(
            f"{name:<6} {count.passed} passed, {count.failed} failed, {count.skipped} skipped "
            f"in {count.seconds:.0f} s {state}"
        )
    for name in without:
        console.print(f"{name:<6} [yellow]left out by name[/yellow]")
    passed = sum(count.passed for count in counts.values())
    failed = sum(count.failed for count in counts.values()) + sum(1 for count in counts.values() if count.problem)
    console.print(f"\n{passed} passed, {failed} failed, {sum(c.skipped for c in counts.values())} skipped")
