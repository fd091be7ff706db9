"""Runs a plan's graph: one worker per node, barriers only where a step needs another."""

from __future__ import annotations

import getpass
import json
import os
import shlex
import socket
import time
import traceback
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gevent
from gevent.event import Event as Signal
from gevent.pool import Group
from pyinfra.api.exceptions import ConnectError
from pyinfra.api.host import Host
from pyinfra.connectors.base import BaseConnector
from pyinfra.context import ctx_host, ctx_state

from onprem_mlops.engine.connector import FramedConnector
from onprem_mlops.engine.inventory import immediate_state
from onprem_mlops.engine.operation import RUN
from onprem_mlops.engine.results import RunResult, StepResult
from onprem_mlops.engine.runner import NodeRunner, OperationFailed
from onprem_mlops.errors import MlopsError, RequestError
from onprem_mlops.events import (
    Listener,
    NodeUnreachable,
    RunEnded,
    RunStarted,
    StepDone,
    StepFailed,
    StepSkipped,
    StepStarted,
)
from onprem_mlops.plan import Graph, PlannedStep
from onprem_mlops.shell import CommandTimeout, Connection, HostKeyMismatch, Unreachable
from onprem_mlops.site import Node, Site
from onprem_mlops.steps import Context, KnownLater, Pending

MakeContext = Callable[[PlannedStep, Node], Context[Any]]

LOCK = "/run/onprem-mlops.lock"
"""The lock on each node that a deploy holds as long as its shell there lives."""

LOCK_WAIT_SECONDS = 300
"""How long a run waits for a command that an earlier, killed run of this controller left running on a node."""


@dataclass(slots=True)
class _Progress:
    """One step's state across its nodes."""

    planned: PlannedStep
    open: set[str]
    values: dict[str, Any] = field(default_factory=dict)
    missed: dict[str, str] = field(default_factory=dict)
    """Node → why the step did not end well there."""

    @property
    def settled(self) -> bool:
        return not self.open

    @property
    def usable(self) -> bool:
        """Whether steps that need this one may run: it ended well somewhere, and failed nowhere but on lost nodes."""
        return self.settled and bool(self.values)


class Run:
    """One run of a graph on a site. Use once."""

    def __init__(
        self,
        site: Site,
        graph: Graph,
        make_context: MakeContext,
        listener: Listener,
        *,
        phase: str,
        planning: bool,
        admissions: Iterable[PlannedStep] = (),
        connector: type[BaseConnector] = FramedConnector,
        connector_data: Mapping[str, Any] | None = None,
        redact: Callable[[str], str] = str,
    ) -> None:
        self._site = site
        self._graph = graph
        self._make_context = make_context
        self._listener = listener
        self._planning = planning
        self._admissions = tuple(admissions)
        self._redact = redact
        self._state = immediate_state(site, graph.nodes, connector, **(connector_data or {}))
        self._progress = {one.id: _Progress(one, {node.name for node in one.nodes}) for one in graph}
        self._moved = Signal()
        self._stopped_by = ""
        self._broken: Exception | None = None
        """What ended a worker that is not its node's failure, such as a listener that cannot write."""
        self.result = RunResult(site.name, phase, planning)

    def execute(self) -> RunResult:
        """Connect, run every step, disconnect.

        Raises RequestError if a node's host key is not the pinned one or a role refuses the node, and what a listener
        raises: nobody would know what such a run did, so it ends once the steps that run have ended.
        """
        started = time.monotonic()
        self._listener(
            RunStarted(
                site=self._site.name,
                phase=self.result.phase,
                planning=self._planning,
                steps=tuple(one.id for one in self._graph),
                nodes=tuple(node.name for node in self._graph.nodes),
            )
        )
        with ctx_state.use(self._state):
            try:
                self._connect()
                workers = Group()
                for node in self._graph.nodes:
                    if node.name not in self.result.unreachable:
                        workers.spawn(self._work, node)
                try:
                    workers.join(raise_error=True)
                except BaseException:
                    # Interrupted: what a worker would still say of its broken connection is no failure of the node.
                    workers.kill(block=False)
                    raise
                if self._broken is not None:
                    raise self._broken
            finally:
                self._disconnect()
        self.result.seconds = time.monotonic() - started
        self._listener(
            RunEnded(
                seconds=self.result.seconds,
                changed=self.result.changed,
                failed=self.result.failed,
                unreachable=tuple(self.result.unreachable),
            )
        )
        return self.result

    # Connections

    def _connect(self) -> None:
        hosts = [self._state.inventory.get_host(node.name) for node in self._graph.nodes]
        greenlets = {host: gevent.spawn(self._connect_one, host) for host in hosts}
        gevent.joinall(list(greenlets.values()))
        refused = [error for one in greenlets.values() if isinstance(error := one.value, RequestError)]
        if refused:
            # What is wrong with the site file all its nodes say in the same words.
            said = "\n".join(dict.fromkeys(one.message for one in refused))
            raise RequestError(said, f"{refused[0].advice} Nothing was changed.")
        lost: dict[str, MlopsError] = {}
        for host, greenlet in greenlets.items():
            if greenlet.exception is not None:
                raise greenlet.exception
            if isinstance(greenlet.value, MlopsError):
                lost[host.name] = greenlet.value
        self._choose(lost)
        for name, error in lost.items():
            self._lose(name, error)

    def _choose(self, lost: Container[str]) -> None:
        """Of the nodes that may run a step, take the first that can be reached."""
        for progress in self._progress.values():
            if progress.planned.step.only == "any":
                names = [node.name for node in progress.planned.nodes]
                progress.open = {next((name for name in names if name not in lost), names[0])}

    def _connect_one(self, host: Host) -> MlopsError | None:
        runner = NodeRunner(self._state, host, self._listener, planning=self._planning)
        host.connector_data[RUN] = runner
        try:
            host.connector.connect()
            host.connected = True
            self._admit(host)
            if not self._planning and isinstance(host.connector, FramedConnector):
                self._lock(host.name, host.connector.connection)
        except (MlopsError, ConnectError) as error:
            cause = error if isinstance(error, MlopsError) else error.__cause__
            return cause if isinstance(cause, MlopsError) else Unreachable(f"{host.name}: {error}")
        return None

    def _admit(self, host: Host) -> None:
        """Let roles look at the node before anything is touched on any. Raises RequestError if one refuses it."""
        ctx_host.set(host)
        for asked in self._admissions:
            for node in asked.nodes:
                if node.name == host.name:
                    self._ask(asked, node)

    def _ask(self, asked: PlannedStep, node: Node) -> None:
        try:
            asked.step.function(self._make_context(asked, node))
        except (Unreachable, CommandTimeout):
            raise
        except MlopsError as refusal:
            raise RequestError(refusal.message, refusal.advice) from None

    def _lock(self, node: str, connection: Connection) -> None:
        """Hold the node's lock in its shell: it ends with the shell, so a killed controller leaves none behind."""
        me = {
            "user": getpass.getuser(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.time(),
        }
        quoted = shlex.quote(json.dumps(me))
        for attempt in range(LOCK_WAIT_SECONDS):
            got = connection.hold(
                f"exec 9>>{LOCK}; if flock -n 9; then printf %s {quoted} >{LOCK}; echo mine; else cat {LOCK}; fi",
                expect="mine",
            )
            if got.text.strip() == "mine":
                return
            holder = json.loads(got.text or "{}")
            if holder.get("host") != me["host"] or _alive(int(holder.get("pid", 0))):
                since = time.strftime("%H:%M:%S", time.localtime(holder.get("since", 0)))
                raise RequestError(
                    f"{node}: {holder.get('user')} on {holder.get('host')} (process {holder.get('pid')}) "
                    f"holds the site since {since}",
                    "Wait for that run to end, or stop it.",
                )
            # An earlier run of this controller was killed; its last command still runs on the node.
            if attempt == 0:
                self._listener(StepStarted(step="waiting for the last run's command to end", node=node))
            gevent.sleep(1)
        raise Unreachable(f"{node}: a command of an earlier run has not ended in {LOCK_WAIT_SECONDS} s")

    def _lose(self, node: str, error: MlopsError) -> None:
        self.result.unreachable[node] = error.message
        self._listener(NodeUnreachable(node=node, message=error.message, advice=error.advice))
        for progress in self._progress.values():
            if node in progress.open:
                self._settle(progress, node, skipped=f"{node} could not be reached")

    def _disconnect(self) -> None:
        for host in self._state.inventory:
            if host.connected:
                host.connector.disconnect()

    # Steps

    def _work(self, node: Node) -> None:
        """One node's worker. If it breaks, the run stops; no other worker may wait for its steps."""
        try:
            self._take_steps(node)
        except Exception as error:  # noqa: BLE001 - kept for `execute`; gevent would print it and go on
            self._broken = self._broken or error
            self._stopped_by = self._stopped_by or f"an error beside the steps of {node.name}"
            for progress in self._progress.values():
                if node.name in progress.open:
                    progress.open.discard(node.name)
                    progress.missed[node.name] = self._stopped_by
            self._wake()

    def _take_steps(self, node: Node) -> None:
        """The first step in plan order that is ready, until none is left."""
        host = self._state.inventory.get_host(node.name)
        waiting = [one for one in self._graph if node.name in self._progress[one.id].open]
        ctx_host.set(host)
        while waiting:
            moved = self._moved
            chosen, reason = self._next(waiting, node)
            if chosen is None:
                moved.wait()
                continue
            waiting.remove(chosen)
            progress = self._progress[chosen.id]
            if reason:
                self._settle(progress, node.name, skipped=reason)
            else:
                self._step(progress, node, host)

    def _next(self, waiting: list[PlannedStep], node: Node) -> tuple[PlannedStep | None, str]:
        """The next step for a node, with a reason if it must be skipped; None if all have to wait."""
        if self._stopped_by:
            return waiting[0], f"the run stopped after {self._stopped_by}"
        for one in waiting:
            blocked = self._blocked(one, node)
            if blocked is not None:
                return one, blocked
            if self._ready(one, node):
                return one, ""
        return None, ""

    def _blocked(self, planned: PlannedStep, node: Node) -> str | None:
        for need in sorted(planned.after):
            progress = self._progress[need]
            if progress.settled and not progress.usable and not self._dispensable(progress, planned):
                return f"it needs {need}, which did not run"
        for need in sorted(planned.here):
            if node.name in self._progress[need].missed:
                return f"it needs {need} on the same node"
        return None

    def _dispensable(self, progress: _Progress, planned: PlannedStep) -> bool:
        """Whether a step that ran nowhere, since all its nodes are lost, need not keep those that only come after it.

        A worker that is off keeps no other node waiting for its join; the one mirror that is off does.
        """
        step = progress.planned.step
        wanted = progress.planned.role is planned.role and step.name in planned.step.inputs
        return step.only is None and not wanted and progress.missed.keys() <= self.result.unreachable.keys()

    def _ready(self, planned: PlannedStep, node: Node) -> bool:
        return (
            all(self._progress[need].settled for need in planned.after)
            and all(node.name not in self._progress[need].open for need in planned.here)
            and (not planned.step.rolling or self._first_open(planned) == node.name)
        )

    def _first_open(self, planned: PlannedStep) -> str:
        """The first node, in the order of the site file, on which a step has not ended."""
        still_open = self._progress[planned.id].open
        return next(node.name for node in planned.nodes if node.name in still_open)

    def _step(self, progress: _Progress, node: Node, host: Host) -> None:
        planned = progress.planned
        runner: NodeRunner = host.connector_data[RUN]
        runner.begin(planned.id)
        self._listener(StepStarted(step=planned.id, node=node.name))
        started = time.monotonic()
        later = ""
        value: Any = None
        try:
            value = planned.step.function(self._make_context(planned, node), **self._inputs(planned))
        except KnownLater as known:
            later, value = known.step, Pending(planned.id)
        except (OperationFailed, MlopsError) as error:
            self._fail(progress, node, runner, time.monotonic() - started, error)
            return
        except Exception as error:  # noqa: BLE001 - a defect in a role is that node's failure, never the run's end
            self._fail(progress, node, runner, time.monotonic() - started, _defect(error))
            return
        if self._planning and runner.changes and value is not None:
            value = Pending(planned.id)
        seconds = time.monotonic() - started
        progress.values[node.name] = value
        self._settle(progress, node.name)
        self.result.steps.append(
            StepResult(
                planned.id,
                node.name,
                "later" if later else "done",
                seconds,
                runner.operations,
                tuple(runner.changes),
                f"after {later}" if later else "",
            )
        )
        self._listener(
            StepDone(
                step=planned.id,
                node=node.name,
                seconds=seconds,
                operations=runner.operations,
                changed=len(runner.changes),
                later=later or None,
            )
        )

    def _inputs(self, planned: PlannedStep) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        for name in planned.step.inputs:
            producer = self._progress[f"{planned.role.name}.{name}"]
            inputs[name] = producer.planned.given(producer.values)
        return inputs

    def _fail(
        self,
        progress: _Progress,
        node: Node,
        runner: NodeRunner,
        seconds: float,
        error: OperationFailed | MlopsError,
    ) -> None:
        planned = progress.planned
        operation, command, output, advice = _explained(error)
        self._stopped_by = self._stopped_by or f"{planned.id} failed on {node.name}"
        self.result.steps.append(
            StepResult(
                planned.id,
                node.name,
                "failed",
                seconds,
                runner.operations,
                tuple(runner.changes),
                self._redact(f"{operation}: {output.strip().splitlines()[-1] if output.strip() else command}"),
            )
        )
        self._listener(
            StepFailed(
                step=planned.id,
                node=node.name,
                seconds=seconds,
                operation=operation,
                command=self._redact(command),
                output=self._redact(output),
                advice=advice,
                detail=self._redact(getattr(error, "detail", "")),
            )
        )
        self._settle(progress, node.name, missed=f"failed: {operation}")

    def _settle(self, progress: _Progress, node: str, *, skipped: str = "", missed: str = "") -> None:
        progress.open.discard(node)
        if skipped or missed:
            progress.missed[node] = skipped or missed
        if skipped:
            step = progress.planned.id
            self.result.steps.append(StepResult(step, node, "skipped", 0.0, 0, (), skipped))
            self._listener(StepSkipped(step=step, node=node, reason=skipped))
        if progress.settled or missed or progress.planned.step.rolling:
            self._wake()

    def _wake(self) -> None:
        # A fresh signal for those who wait next: one that is set and cleared could be missed.
        moved, self._moved = self._moved, Signal()
        moved.set()


def _alive(pid: int) -> bool:
    if pid <= 0 or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _defect(error: Exception) -> OperationFailed:
    """A defect in a role as a failure of that node: where it is, without a traceback on the screen."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return OperationFailed(
        "the role's own code",
        f"{frame.filename}:{frame.lineno} in {frame.name}",
        f"{type(error).__name__}: {error}",
        "This is a defect of the role, not of the node. The whole traceback is in the run's log.",
        "".join(traceback.format_exception(error)),
    )


def _explained(error: OperationFailed | MlopsError) -> tuple[str, str, str, str]:
    """Operation, command, output and advice of a failure."""
    if isinstance(error, OperationFailed):
        advice = error.advice or "Mend what the output names, then run the same command again: it goes on from here."
        return error.operation, error.command, error.output, advice
    kind = {CommandTimeout: "waiting for a command", HostKeyMismatch: "connecting"}.get(type(error), "on the node")
    return kind, "", error.message, error.advice
