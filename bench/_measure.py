"""What the measurements share: timing whole processes, and printing figures with the command that repeats them."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Timed:
    """A process that ended: wall and processor seconds, and the peak memory of its largest part (MiB)."""

    seconds: float
    cpu: float
    peak_mib: float
    output: str


def timed(command: Sequence[str], *, environment: Mapping[str, str] | None = None, cwd: Path = REPOSITORY) -> Timed:
    """Run a command to its end and say what it took. A non-zero exit ends the measurement with its output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.monotonic()
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False
    )
    seconds = time.monotonic() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = done.stdout + done.stderr
    if done.returncode != 0:
        sys.stdout.write(output)
        raise SystemExit(f"measurement ended: {' '.join(command)} gave exit code {done.returncode}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Timed(seconds, cpu, after.ru_maxrss / 1024, output)


def figure(name: str, value: str, limit: str, held: bool) -> None:
    """Print one figure beside its limit, and leave it for `./mlops bench --json`."""
    sys.stdout.write(f"{name:<58} {value:>14}   {limit:<22} {'held' if held else 'MISSED'}\n")
    if not held:
        _missed.append(name)
    if kept := os.environ.get("BENCH_FIGURES"):
        with Path(kept).open("a") as file:
            file.write(json.dumps({"name": name, "value": value, "limit": limit, "held": held}) + "\n")


def repeat_with(command: str) -> None:
    """Print the command that repeats the measurement; ends with exit code 1 if a figure missed its limit."""
    sys.stdout.write(f"repeat with: {command}\n")
    if _missed:
        raise SystemExit(1)


_missed: list[str] = []
