"""What a run gave, as typed objects."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from onprem_mlops.events import Diff

StepOutcome = Literal["done", "failed", "skipped", "later"]


@dataclass(frozen=True, slots=True)
class Change:
    """One operation that changed something on a node, or in a plan would."""

    operation: str
    commands: tuple[str, ...]
    diffs: tuple[Diff, ...]


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step on one node. `note` says why it was skipped, failed, or what it waits for ("after <step>")."""

    step: str
    node: str
    outcome: StepOutcome
    seconds: float
    operations: int
    changes: tuple[Change, ...]
    note: str = ""


@dataclass(slots=True)
class RunResult:
    """A whole run."""

    site: str
    phase: str
    planning: bool
    seconds: float = 0.0
    steps: list[StepResult] = field(default_factory=list)
    unreachable: dict[str, str] = field(default_factory=dict)
    """Node name → why it could not be reached."""
    log: Path | None = None
    """Every event, a line each; None if none was kept."""

    @property
    def changed(self) -> int:
        """Operations that changed something on a node, or in a plan would."""
        return sum(len(step.changes) for step in self.steps)

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of nodes on which a step failed."""
        return tuple(dict.fromkeys(step.node for step in self.steps if step.outcome == "failed"))

    @property
    def ok(self) -> bool:
        """Whether every node was reached and no step failed or was left out."""
        return not self.unreachable and all(step.outcome in ("done", "later") for step in self.steps)
