"""What happened in a run, as typed events. The engine only emits; console, log file and report listen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Diff:
    """A file as it is on the node and as it should be. Contents of secret files are never in here."""

    path: str
    before: str | None
    after: str | None
    secret: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened; `at` is seconds since the epoch."""

    kind: ClassVar[str] = "event"
    at: float = field(default_factory=time.time)

    def record(self) -> dict[str, Any]:
        """The event as plain data, for `run.jsonl`."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """A run begins: what was asked for and what it covers. `planning` means that nothing is changed."""

    kind: ClassVar[str] = "run_started"
    site: str
    phase: str
    planning: bool
    steps: tuple[str, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeUnreachable(Event):
    """A node that could not be reached; the run goes on without it."""

    kind: ClassVar[str] = "node_unreachable"
    node: str
    message: str
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted(Event):
    """A step begins on a node."""

    kind: ClassVar[str] = "step_started"
    step: str
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationStarted(Event):
    """An operation begins on a node (only told where it changes something)."""

    kind: ClassVar[str] = "operation_started"
    step: str
    node: str
    operation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationDone(Event):
    """An operation that changed something (or, in a plan, would). `commands` are masked."""

    kind: ClassVar[str] = "operation_done"
    step: str
    node: str
    operation: str
    seconds: float
    commands: tuple[str, ...]
    diffs: tuple[Diff, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone(Event):
    """A step ended well on a node. `operations` counts all, `changed` those that changed something.

    `later` is set in a plan: the step that must have run before the rest of this one can be known.
    """

    kind: ClassVar[str] = "step_done"
    step: str
    node: str
    seconds: float
    operations: int
    changed: int
    later: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFailed(Event):
    """A step failed on a node: which operation, its command (masked), its last output, what to do."""

    kind: ClassVar[str] = "step_failed"
    step: str
    node: str
    seconds: float
    operation: str
    command: str
    output: str
    advice: str
    detail: str = ""
    """For the log only: the traceback of a defect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSkipped(Event):
    """A step that was not begun on a node, and why."""

    kind: ClassVar[str] = "step_skipped"
    step: str
    node: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event):
    """The run is over."""

    kind: ClassVar[str] = "run_ended"
    seconds: float
    changed: int
    failed: tuple[str, ...]
    unreachable: tuple[str, ...]


Listener = Callable[[Event], None]


def to_all(listeners: Iterable[Listener]) -> Listener:
    """One listener that tells several, in order."""
    several = tuple(listeners)

    def tell(event: Event) -> None:
        for listener in several:
            listener(event)

    return tell
