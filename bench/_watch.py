"""A command that is watched while it runs: when it said what, and the memory of all its processes together."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench._measure import REPOSITORY

SAMPLE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Line:
    """A line of output, and when it came (seconds since the epoch)."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Watched:
    """A command that ended: its times (seconds since the epoch), its output, and the memory that it used at most.

    `peak_mib` is the largest sum, over its process and all descendants at one time, of their proportional set sizes:
    what several processes share is counted once.
    """

    began: float
    ended: float
    lines: tuple[Line, ...]
    peak_mib: float
    code: int

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return self.ended - self.began

    @property
    def output(self) -> str:
        """All that it said."""
        return "".join(line.text for line in self.lines)

    def must(self, what: str) -> Watched:
        """End the measurement with the whole output unless the command ended well."""
        if self.code != 0:
            sys.stdout.write(self.output)
            raise SystemExit(f"measurement ended: {what} gave exit code {self.code} after {self.seconds:.0f} s")
        return self


def watched(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Watched:
    """Run a command to its end and watch it."""
    began = time.time()
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    memory = _Memory(process.pid)
    memory.start()
    lines = []
    try:
        assert process.stdout is not None
        lines = [Line(time.time(), text) for text in process.stdout]
        code = process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        process.wait()
        memory.stop()
    return Watched(began, time.time(), tuple(lines), memory.peak / 2**20, code)


class _Memory(threading.Thread):
    """Samples the memory of a process and its descendants."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._ended = threading.Event()
        self.peak = 0
        """Bytes."""

    def run(self) -> None:
        """Sample until stopped."""
        while not self._ended.wait(SAMPLE_SECONDS):
            self.peak = max(self.peak, sum(_proportional_set(pid) for pid in family(self._pid)))

    def stop(self) -> None:
        """End the sampling."""
        self._ended.set()
        self.join()


def family(pid: int) -> set[int]:
    """A process and all that descend from it now."""
    parents = dict(_parents())
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                # The name, in parentheses, may hold anything.
                yield int(folder.name), int((folder / "stat").read_text().rpartition(")")[2].split()[1])


def _proportional_set(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
