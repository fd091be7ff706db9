"""Carries out the operations of one step on one node: really, or, in a plan, on paper."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import MethodType
from typing import Any

from pyinfra.api.exceptions import FactProcessError, NestedOperationError
from pyinfra.api.facts import get_fact
from pyinfra.api.host import Host
from pyinfra.api.state import State

from onprem_mlops.engine.facts import NewestChange, Reading, Unit
from onprem_mlops.engine.operation import Command, Outcome
from onprem_mlops.engine.results import Change
from onprem_mlops.events import Diff, Listener, OperationDone, OperationStarted

OUTPUT_LINES = 20
"""Lines of a failed command's output that a person is shown."""


class OperationFailed(Exception):
    """An operation failed on a node. Everything a person needs to see is in its fields."""

    def __init__(self, operation: str, command: str, output: str, advice: str = "", detail: str = "") -> None:
        super().__init__(f"{operation}: {command}")
        self.detail = detail
        self.operation = operation
        self.command = command
        self.output = output
        self.advice = advice


class NodeRunner:
    """Performs operations on one node and keeps count."""

    def __init__(self, state: State, host: Host, listener: Listener, *, planning: bool) -> None:
        self._state = state
        self._host = host
        self._listener = listener
        self._planning = planning
        self._remembered: dict[Any, Any] = {}
        self._to_be_written: set[str] = set()
        self._step = ""
        self._purpose = ""
        self._executed = 0
        self.operations = 0
        self.changes: list[Change] = []
        host.__dict__["get_fact"] = MethodType(self._get_fact, host)

    def begin(self, step: str) -> None:
        """A new step: counts start again, what is known of the node stays."""
        self._step, self.operations, self.changes = step, 0, []

    def _get_fact(self, host: Host, kind: Any, *args: Any, **kwargs: Any) -> Any:
        """pyinfra's `Host.get_fact`, remembered until something is executed on the node."""
        # Arguments of pyinfra's facts may be lists; what they look like is what they are.
        key = (kind, repr(args), repr(sorted(kwargs.items())))
        if key not in self._remembered:
            self._remembered[key] = self._read(host, kind, args, kwargs)
        return self._remembered[key]

    def _read(self, host: Host, kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A fact. In a plan, a file that the plan would write counts as just written: its service would restart."""
        if kind is NewestChange and not self._to_be_written.isdisjoint(kwargs["paths"]):
            return time.time()
        value = self._as_it_is(host, kind, args, kwargs)
        if kind is Unit and any(_belongs(path, kwargs["unit"]) for path in self._to_be_written):
            return replace(value, stale=True)
        return value

    def _as_it_is(self, host: Host, kind: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name, doing = str(kind.__name__), self._purpose or "reading facts"
        if issubclass(kind, Reading) and not args:
            try:
                return kind.read(host, **kwargs)
            except FactProcessError as error:
                raise OperationFailed(doing, name, str(error)) from None
        value = get_fact(self._state, host, kind, args=args, kwargs=kwargs)
        if host in self._state.failed_hosts:
            raise OperationFailed(doing, name, "the fact could not be read")
        return value

    def forget(self) -> None:
        """Something was executed: nothing that was read before may be believed."""
        self._remembered.clear()

    def executing(self, command: Command) -> None:
        """Called before a command of an operation is executed."""
        if self._executed == 0:
            self._listener(OperationStarted(step=self._step, node=self._host.name, operation=self._purpose))
        self._executed += 1
        self.forget()

    def perform(
        self,
        operation: Callable[..., Any],
        generator: Callable[..., Iterator[Command]],
        purpose: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Outcome:
        """Carry out one operation. Raises OperationFailed."""
        self._purpose, self._executed = purpose, 0
        self.operations += 1
        started = time.monotonic()
        if self._planning:
            commands, stdout = list(generator(*args, **kwargs)), ""
            self._to_be_written |= {one.diff.path for one in commands if isinstance(one, Command) and one.diff}
        else:
            commands, stdout = self._execute(operation, purpose, args, kwargs)
        if commands:
            # Ours forget before each command (see Command.execute); pyinfra's own do not know of it.
            self.forget()
            self._record(purpose, commands, time.monotonic() - started)
        return Outcome(bool(commands), stdout)

    def _execute(
        self, operation: Callable[..., Any], purpose: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[list[Command], str]:
        known = len(self._host.op_hash_order)
        try:
            meta = operation(*args, name=purpose, **kwargs)
        except NestedOperationError:
            meta = self._state.ops[self._host][self._host.op_hash_order[known]].operation_meta
            commands = meta._commands or []
            output = "\n".join((meta.stdout_lines + meta.stderr_lines)[-OUTPUT_LINES:])
            raise OperationFailed(purpose, str(commands[-1]) if commands else "", output) from None
        finally:
            self._drop_records(known)
        return list(meta._commands or []), meta.stdout

    def _drop_records(self, known: int) -> None:
        # pyinfra keeps every operation's output for the whole run; ours are in `changes`.
        for done in self._host.op_hash_order[known:]:
            self._state.ops[self._host].pop(done, None)
        del self._host.op_hash_order[known:]

    def _record(self, purpose: str, commands: list[Command], seconds: float) -> None:
        diffs: list[Diff] = [one.diff for one in commands if isinstance(one, Command) and one.diff is not None]
        change = Change(purpose, tuple(str(one) for one in commands), tuple(diffs))
        self.changes.append(change)
        self._listener(
            OperationDone(
                step=self._step,
                node=self._host.name,
                operation=purpose,
                seconds=seconds,
                commands=change.commands,
                diffs=change.diffs,
            )
        )


def _belongs(path: str, unit: str) -> bool:
    """Whether a file is a unit's own, or one of its drop-ins."""
    own = f"/etc/systemd/system/{unit}"
    return path == own or path.startswith(f"{own}.d/")
