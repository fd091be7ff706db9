"""The process that verifies: reads what is wanted on standard input, forks a worker a unit, writes what they find.

pytest, testinfra and the site are loaded once and shared by all workers (fork shares their memory), so that a worker
costs a few megabytes and starts at once. No gevent in here, and no thread or connection before the fork.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import sys
import tempfile
import traceback
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from onprem_mlops.errors import MlopsError
from onprem_mlops.paths import REPOSITORY
from onprem_mlops.site import Site, load_site
from onprem_mlops.verify.plugin import VerifyPlugin, run_pytest
from onprem_mlops.verify.results import Check
from onprem_mlops.verify.selection import Suite, Unit

_RAN = (0, 1, 5)
"""pytest's exit statuses for: all passed, some failed, nothing to do for this unit."""


class Unheard(Exception):
    """Whoever asked for the verification has gone."""


class Channel:
    """Lines of JSON to the process that asked, from several workers at once."""

    def __init__(self, descriptor: int, lock: IO[bytes]) -> None:
        self._descriptor = descriptor
        self._lock = lock

    def send(self, kind: str, **fields: Any) -> None:
        """Send one message. Whole lines only: a pipe may cut what is longer than a page."""
        data = json.dumps({"kind": kind, **fields}).encode() + b"\n"
        fcntl.lockf(self._lock, fcntl.LOCK_EX)
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except BrokenPipeError:
            raise Unheard from None
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)

    def check(self, check: Check) -> None:
        """Send how a check ended."""
        self.send("check", **dataclasses.asdict(check))


def run_units(site: Site, units: Sequence[Unit], workers: int, channel: Channel) -> None:
    """Run every unit in a forked worker, at most ``workers`` at a time."""
    waiting = deque(units)
    running: dict[int, Unit] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                unit = waiting.popleft()
                running[_fork(site, unit, channel)] = unit
            _reap(running, channel)
    except (KeyboardInterrupt, Unheard):
        # The workers meet the same, and clean up on the site; nobody else waits for them.
        while running:
            running.pop(os.wait()[0], None)
        raise


def _reap(running: dict[int, Unit], channel: Channel) -> None:
    """Wait for the next worker that ends."""
    pid, status = os.wait()
    unit = running.pop(pid)
    if os.waitstatus_to_exitcode(status) not in _RAN:
        channel.send("broken", unit=unit.name, message="the worker ended early; its output is above")
    channel.send("unit_done", unit=unit.name)


def _fork(site: Site, unit: Unit, channel: Channel) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        status = _work(site, unit, channel)
    except (Unheard, KeyboardInterrupt):
        pass  # whoever asked has gone, or asked to stop: there is nobody to tell
    except BaseException:  # noqa: BLE001 - the worker ends here whatever it was; its parent reports it
        traceback.print_exc()
    finally:
        os._exit(status)


def _work(site: Site, unit: Unit, channel: Channel) -> int:
    channel.send("unit_started", unit=unit.name)
    plugin = VerifyPlugin(site, unit, channel.check)
    files = (path for suite in unit.suites for path in suite.files)
    status = run_pytest(plugin, files, REPOSITORY)
    for message in plugin.broken:
        channel.send("broken", unit=unit.name, message=message)
    # Collection errors were reported above, with what is wrong; pytest's status for them says no more.
    return 0 if plugin.broken else status


def _units(listed: list[dict[str, Any]]) -> list[Unit]:
    return [
        Unit(
            unit["node"],
            tuple(Suite(suite["role"], tuple(Path(path) for path in suite["files"])) for suite in unit["suites"]),
        )
        for unit in listed
    ]


def main() -> int:
    """Verify what standard input asks for; standard output carries the messages."""
    # A test's output must never mix with the messages.
    descriptor = os.dup(1)
    os.dup2(2, 1)
    wanted = json.load(sys.stdin)
    with tempfile.TemporaryFile() as lock:
        channel = Channel(descriptor, lock)
        try:
            site = load_site(Path(wanted["inventory"]))
            run_units(site, _units(wanted["units"]), wanted["workers"], channel)
        except MlopsError as error:
            channel.send("refused", message=error.message, advice=error.advice)
            return error.exit_code
        except (KeyboardInterrupt, Unheard):
            return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
