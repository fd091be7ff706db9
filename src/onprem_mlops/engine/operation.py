"""How a role calls an operation.

Operations are written like pyinfra's own: generators that read facts first and then yield the commands that are
needed, none when nothing is. Roles call them through `@operation`, which adds what pyinfra leaves to the caller: what
the operation is for, a record of what it did, and, in a plan, a record of what it would do.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, Concatenate, ParamSpec, Protocol, cast

from pyinfra.api import arguments as global_arguments
from pyinfra.api.arguments_typed import PyinfraOperation
from pyinfra.api.command import StringCommand
from pyinfra.api.operation import operation as pyinfra_operation
from pyinfra.context import host

from onprem_mlops.events import Diff

# pyinfra works out the types of its global arguments anew for every operation and fact: a tenth of a converged run.
global_arguments.all_global_arguments = cache(global_arguments.all_global_arguments)

P = ParamSpec("P")
RUN = "onprem_mlops.run"
"""Key of the node's runner in pyinfra's `host.connector_data`."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an operation did. In a plan: what it would do, with empty output."""

    changed: bool
    stdout: str = ""


class Command(StringCommand):
    """A shell command, with what a person should know about it.

    Args:
        text: the command. It must hold no secret: those go through `stdin`.
        stdin: text for its standard input; never shown.
        diff: the file that the command changes, before and after.
        timeout: seconds after which the command's process group is killed.
    """

    def __init__(
        self, text: str, *, stdin: str | None = None, diff: Diff | None = None, timeout: int | None = None
    ) -> None:
        arguments: dict[str, Any] = {}
        if stdin is not None:
            arguments["_stdin"] = stdin
        if timeout is not None:
            arguments["_timeout"] = timeout
        super().__init__(text, **arguments)
        self.diff = diff

    def execute(self, state: Any, host: Any, connector_arguments: Any) -> Any:
        """Execute on a node; the node's runner hears of it first, so that nothing read before is believed after."""
        runner: Runner | None = host.connector_data.get(RUN)
        if runner is not None:
            runner.executing(self)
        return self.carry_out(state, host, connector_arguments)

    def carry_out(self, state: Any, host: Any, connector_arguments: Any) -> Any:
        """Do it: success, and what it said. Other than by running the text in the node's shell: override this."""
        return super().execute(state, host, connector_arguments)


class Runner(Protocol):
    """Carries out operations on the node that is the current pyinfra host."""

    def executing(self, command: Command) -> None: ...

    def perform(
        self,
        operation: Callable[..., Any],
        generator: Callable[..., Iterator[Command]],
        purpose: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Outcome: ...


def operation(function: Callable[P, Iterator[Command]]) -> Callable[Concatenate[str, P], Outcome]:
    """Make a generator of commands an operation that roles call with its purpose as first argument."""
    return adopt(pyinfra_operation()(cast("Callable[P, Generator[Command, None, None]]", function)))


def adopt(wrapped: PyinfraOperation[P]) -> Callable[Concatenate[str, P], Outcome]:
    """Make one of pyinfra's own operations (say `pyinfra.operations.files.line`) one that roles can call."""
    plain = cast("Callable[..., Any]", wrapped)
    generator = cast("Callable[P, Iterator[Command]]", wrapped._inner)

    @wraps(generator)
    def call(purpose: str, /, *args: P.args, **kwargs: P.kwargs) -> Outcome:
        runner: Runner | None = host.connector_data.get(RUN)
        if runner is not None:
            return runner.perform(plain, generator, purpose, args, kwargs)
        # Under plain pyinfra there is no runner: the operation runs as any other of pyinfra's.
        done = plain(*args, name=purpose, **kwargs)
        return Outcome(done.did_change(), done.stdout)

    call.generator = generator  # type: ignore[attr-defined]
    return call
