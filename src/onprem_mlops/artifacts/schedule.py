"""Makes artifacts side by side: inputs first, the longest way to the end before shorter ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from onprem_mlops.artifacts.catalogue import Artifact

# A compiler uses every processor most of the time; a second one fills the gaps while the first one links.
HEAVY_AT_ONCE = 2
LIGHT_AT_ONCE = 3


def ranks(artifacts: Sequence[Artifact]) -> dict[str, int]:
    """Seconds from the start of each artifact to the end of the last one that needs it."""
    known = {artifact.name: artifact for artifact in artifacts}
    dependents: dict[str, list[str]] = {name: [] for name in known}
    for artifact in artifacts:
        for name in artifact.inputs():
            if name in known:
                dependents[name].append(artifact.name)
    found: dict[str, int] = {}
    for artifact in reversed(artifacts):  # inputs come first in `artifacts`, so dependents are known here
        after = max((found[name] for name in dependents[artifact.name]), default=0)
        found[artifact.name] = artifact.cost + after
    return found


class Schedule:
    """Which artifact may start now."""

    def __init__(self, artifacts: Sequence[Artifact], heavy: Callable[[Artifact], bool]) -> None:
        rank = ranks(artifacts)
        self._waiting = sorted(artifacts, key=lambda artifact: -rank[artifact.name])
        self._missing = {artifact.name for artifact in artifacts}
        self._heavy = heavy
        self._room = {True: min(HEAVY_AT_ONCE, max(1, os.cpu_count() or 1)), False: LIGHT_AT_ONCE}

    @property
    def order(self) -> tuple[str, ...]:
        """Names, the most urgent first."""
        return tuple(artifact.name for artifact in self._waiting)

    def next(self) -> Artifact | None:
        """The most urgent one whose inputs are there and for which there is room."""
        for artifact in self._waiting:
            free = self._room[self._heavy(artifact)] > 0
            if free and not self._missing.intersection(artifact.inputs()):
                self._waiting.remove(artifact)
                self._room[self._heavy(artifact)] -= 1
                return artifact
        return None

    def done(self, artifact: Artifact, *, made: bool) -> None:
        """`artifact` has ended; if it was not made, what needs it never starts."""
        self._room[self._heavy(artifact)] += 1
        if made:
            self._missing.discard(artifact.name)


def work_through(schedule: Schedule, make: Callable[[Artifact], None]) -> dict[str, BaseException]:
    """Call `make` for each artifact, side by side; gives what failed, by name. Others go on."""
    failures: dict[str, BaseException] = {}
    running: dict[Future[None], Artifact] = {}
    with ThreadPoolExecutor(max_workers=HEAVY_AT_ONCE + LIGHT_AT_ONCE, thread_name_prefix="artifact") as pool:
        while True:
            while artifact := schedule.next():
                running[pool.submit(make, artifact)] = artifact
            if not running:
                return failures
            _collect(schedule, running, failures)


def _collect(schedule: Schedule, running: dict[Future[None], Artifact], failures: dict[str, BaseException]) -> None:
    ended, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in ended:
        artifact = running.pop(future)
        error = future.exception()
        if error is not None:
            failures[artifact.name] = error
        schedule.done(artifact, made=error is None)
