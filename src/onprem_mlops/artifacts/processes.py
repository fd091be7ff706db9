"""Commands of a build: logged, ended with the run, and explained when they fail."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from onprem_mlops.errors import Interrupted, MlopsError

_TAIL_LINES = 20


class CommandFailed(MlopsError):
    """A command of a build ended badly: what it was, its last output, its log."""


def bound(command: Sequence[str]) -> list[str]:
    """`command`, made to end when this process dies, even by kill -9."""
    wrapper = shutil.which("setpriv")
    return [*([wrapper, "--pdeathsig", "TERM", "--"] if wrapper else []), *command]


class Processes:
    """Runs commands and can stop all of them at once."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(
        self, command: Sequence[str], log: Path, *, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        """Run `command`, its output appended to `log`; CommandFailed unless it exits with 0."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            output.write(f"$ {shlex.join(command)}\n".encode())
            output.flush()
            begin = output.tell()
            process = self.start(command, output.fileno(), cwd=cwd, env=env)
            code = self.wait(process)
        if self._stopped:
            raise Interrupted("stopped", "run the same command again: it goes on where it was")
        if code != 0:
            raise CommandFailed(
                f"`{_shorten(shlex.join(command))}` ended with {code}:\n{_tail(log, begin)}",
                f"whole output: {log}",
            )

    def start(
        self, command: Sequence[str], output: int, *, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start `command` in its own process group, so that `stop` reaches its children too."""
        with self._lock:
            if self._stopped:
                raise Interrupted("stopped", "run the same command again: it goes on where it was")
            try:
                process = subprocess.Popen(
                    bound(command),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=cwd,
                    env={**os.environ, **(env or {})},
                    start_new_session=True,
                )
            except OSError as error:
                raise CommandFailed(f"cannot start {command[0]}: {error}") from error
            self._running.add(process)
        return process

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        """The exit code of `process`."""
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Ask one process and its children to end, then insist after five seconds."""
        _signal(process, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)
        self.wait(process)

    def stop(self) -> None:
        """End everything that runs; nothing can be started afterwards."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + 5
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal(process, signal.SIGKILL)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _shorten(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else f"{text[:limit]} …"


def _tail(log: Path, begin: int) -> str:
    with log.open("rb") as stream:
        stream.seek(begin)
        lines = stream.read().decode(errors="replace").strip().splitlines()
    return "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:])
