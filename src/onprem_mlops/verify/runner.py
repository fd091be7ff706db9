"""Starts the process that verifies and reads what it finds. Works in a process that gevent has patched."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict
from typing import Any

from onprem_mlops.errors import MlopsError
from onprem_mlops.paths import REPOSITORY
from onprem_mlops.site import Site
from onprem_mlops.verify.results import Check, VerifyResult
from onprem_mlops.verify.selection import Unit

WORKERS = 4
"""Workers side by side. They mostly wait for nodes, so there are more of them than cores."""

CLEANING_SECONDS = 20
"""How long workers may clean up behind themselves (namespaces, listeners) after a person stopped the run."""

OnMessage = Callable[[dict[str, Any]], None]


def verify(
    site: Site,
    units: Sequence[Unit],
    phases: Sequence[str],
    *,
    on_message: OnMessage = lambda message: None,
    workers: int = WORKERS,
) -> VerifyResult:
    """Run the units and return what they found.

    ``on_message`` sees every message as it comes: ``unit_started``, ``check``, ``unit_done``, ``broken``.
    A suite that cannot be read gives a check that was not made. MlopsError if the process itself fails.
    """
    started, clock = time.time(), time.monotonic()
    request = {"inventory": str(site.folder.absolute()), "workers": workers, "units": [_plain(unit) for unit in units]}
    checks: list[Check] = []
    # Closed at once, whatever ends the loop: workers must not outlive a person's Ctrl-C.
    with contextlib.closing(_messages(json.dumps(request))) as messages:
        for message in messages:
            on_message(message)
            match message["kind"]:
                case "check":
                    checks.append(_check(message))
                case "broken":
                    checks.append(_broken(message))
                case "refused":
                    raise MlopsError(message["message"], message["advice"])
    return VerifyResult(site.name, tuple(phases), started, round(time.monotonic() - clock, 3), tuple(checks))


def _messages(request: str) -> Generator[dict[str, Any], None, None]:
    # A session of its own, so that Ctrl-C reaches the workers once and in an order we choose.
    process = subprocess.Popen(
        [sys.executable, "-m", "onprem_mlops.verify.session"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": _python_path(), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(request.encode())
        process.stdin.close()
        for line in process.stdout:
            yield json.loads(line)
        if process.wait() not in (0, 1, 2):
            raise MlopsError(f"the verification ended early with status {process.returncode}")
    finally:
        _end(process)


def _python_path() -> str:
    """This very package first, however this process found it."""
    return os.pathsep.join(part for part in (str(REPOSITORY / "src"), os.environ.get("PYTHONPATH")) if part)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let the workers clean up, then make sure that none is left."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(CLEANING_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _plain(unit: Unit) -> dict[str, Any]:
    plain = asdict(unit)
    for suite in plain["suites"]:
        suite["files"] = [str(path) for path in suite["files"]]
    return plain


def _check(message: dict[str, Any]) -> Check:
    fields = {name: value for name, value in message.items() if name != "kind"}
    return Check(**{**fields, "controls": tuple(fields["controls"])})


def _broken(message: dict[str, Any]) -> Check:
    return Check(
        role="verify",
        node="",
        name=f"The suites of {message['unit']} can be run",
        outcome="not_checked",
        message=message["message"],
        advice="This is a fault in a suite, not on a node.",
    )
