"""Bad networks: delay and loss of the packets to a node."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from onprem_mlops.errors import MlopsError, RequestError
from onprem_mlops.lab import network, relay
from onprem_mlops.lab.host import Pid, run, succeeds, wait_until
from onprem_mlops.lab.supervision import Container
from onprem_mlops.locks import is_locked


def impair(container: Container, init: Pid, delay_ms: float, loss_percent: float) -> str:
    """Delay or lose packets to a running node until it reboots or `clear`; returns what does it, `netem` or `relay`.

    Raises RequestError for values that are no delay or percentage.
    """
    if not 0 <= delay_ms <= 10_000 or not 0 <= loss_percent <= 100:
        raise RequestError(f"{delay_ms} ms, {loss_percent} %: a delay is 0 to 10000 ms, a loss 0 to 100 %")
    clear(container, init)
    port = network.port_of(init)
    rule = ("netem", "delay", f"{delay_ms}ms", "loss", f"{loss_percent}%", "limit", "100000")
    if succeeds("tc", "qdisc", "replace", "dev", port, "root", *rule):
        return "netem"
    _start_relay(container, port, delay_ms, loss_percent)
    return "relay"


def clear(container: Container, init: Pid | None) -> None:
    """Take the impairment of a node's network away, if there is any."""
    _stop_relay(container)
    if init is None:
        return
    port = network.port_of(init)
    succeeds("tc", "qdisc", "delete", "dev", port, "root")
    run("ip", "link", "set", port, "master", container.spec.bridge)


def reconnect(container: Container, init: Pid) -> None:
    """Put a running node's link back on the bridge, unless it is there, or a relay in its place."""
    bridged = _bridged(container)
    if not (bridged / _tap(container)).exists() and not (bridged / network.port_of(init)).exists():
        clear(container, init)


def _bridged(container: Container) -> Path:
    """A folder with an entry for everything on the lab's bridge."""
    return Path("/sys/class/net") / container.spec.bridge / "brif"


def _tap(container: Container) -> str:
    return "lt-" + hashlib.sha256(container.machine.encode()).hexdigest()[:10]


def _start_relay(container: Container, port: str, delay_ms: float, loss_percent: float) -> None:
    tap = _tap(container)
    lock = container.folders.relay_lock
    program = Path(relay.__file__)
    words = [sys.executable, "-I", "-S", str(program), port, container.spec.bridge, tap]
    command = shlex.join([*words, str(delay_ms), str(loss_percent), str(lock)])
    log = shlex.quote(str(container.folders.console))
    subprocess.run(
        ["sh", "-c", f"setsid {command} </dev/null >>{log} 2>&1 &"],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    if not wait_until(lambda: (_bridged(container) / tap).exists(), 10):
        raise MlopsError(f"{container.node.name}: the relay that delays packets did not start", f"See {log}.")


def _stop_relay(container: Container) -> None:
    lock = container.folders.relay_lock
    if not is_locked(lock):
        return
    with contextlib.suppress(ProcessLookupError, ValueError):
        os.kill(int(lock.read_text()), signal.SIGTERM)
    if not wait_until(lambda: not is_locked(lock), 5):
        raise MlopsError(f"{container.node.name}: the relay that delays packets does not end")
