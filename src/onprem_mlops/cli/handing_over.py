"""Commands that run another program for the person and give its exit code."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence

from onprem_mlops.cli.result import Result


def hand_over(command: Sequence[str], run: Callable[[], int]) -> Result:
    """Run a program. Ctrl-C is the program's own to answer, as it would be under a shell."""
    began = time.monotonic()
    # A handler of ours, not SIG_IGN: the program starts with the default and not with our deafness.
    previous = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        code = run()
    finally:
        signal.signal(signal.SIGINT, previous)
    if code < 0:  # ended by a signal; as a shell says it
        code = 128 - code
    return Result(
        {"command": list(command), "exit_code": code, "seconds": round(time.monotonic() - began, 3)}, exit_code=code
    )
