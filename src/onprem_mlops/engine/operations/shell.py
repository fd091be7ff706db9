"""Commands that no other operation covers. Each says how to see that it need not run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from pyinfra.context import host

from onprem_mlops.engine.facts import Probe
from onprem_mlops.engine.operation import Command, operation


@operation
def run(command: str, *, unless: str | bool, stdin: str | None = None, timeout: int | None = 600) -> Iterator[Command]:
    """Run a command unless a check says that it is already done.

    Args:
        command: what to run; no secrets in it, they go through `stdin`.
        unless: a reading command, whose exit status 0 means that there is nothing to do; or whether that is so, where
            it was read before.
        stdin: text for the command's standard input; never shown.
        timeout: seconds.
    """
    done = unless if isinstance(unless, bool) else host.get_fact(Probe, command=unless).ok
    if not done:
        yield Command(command, stdin=stdin, timeout=timeout)


@operation
def wait(until: str, *, seconds: int, otherwise: str) -> Iterator[Command]:
    """Wait on the node until a reading command succeeds.

    Args:
        until: the command; its exit status 0 ends the wait.
        seconds: how long at most.
        otherwise: a command whose output tells a person why it may have failed.
    """
    if host.get_fact(Probe, command=until).ok:
        return
    check = shlex.quote(until)
    yield Command(
        f"end=$(( $(date +%s) + {seconds} )); until sh -c {check} >/dev/null 2>&1; do "
        f"if [ $(date +%s) -ge $end ]; then echo 'not so after {seconds} s:' {check} >&2; "
        f"( {otherwise} ) >&2; exit 1; fi; sleep 0.5; done",
        timeout=seconds + 60,
    )
