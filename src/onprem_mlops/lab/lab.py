"""Bring a lab up and down, and do to its nodes what happens to real ones: reboots, power cuts, bad networks."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Literal, TypeVar

from onprem_mlops import paths
from onprem_mlops.errors import MlopsError, NodesFailed, RequestError
from onprem_mlops.lab import disks, impairment, limits, network, record, root
from onprem_mlops.lab.folders import LabFolders
from onprem_mlops.lab.host import Pid, remove_tree, require_root, started_at, wait_until
from onprem_mlops.lab.keys import LabKeys, ensure_keys
from onprem_mlops.lab.legacy import LegacySupervision, hierarchies
from onprem_mlops.lab.readiness import Answer, listens, ssh_command, unreachable_peers, wait_ready
from onprem_mlops.lab.spec import LabNode, LabSpec
from onprem_mlops.lab.supervision import Container, Supervision, leader
from onprem_mlops.lab.unified import SystemdSupervision
from onprem_mlops.locks import locked
from onprem_mlops.prerequisites import require

BOOT_SECONDS = 120.0
"""How long a node may take to boot before it counts as failed; on an idle machine it takes under 10."""

POWER_OFF_SECONDS = 40.0
"""How long a node may take to stop its services before it is ended as a power cut would."""

_SIGNAL_POWER_OFF = signal.SIGRTMIN + 4
_SIGNAL_REBOOT = signal.SIGRTMIN + 5

Listener = Callable[[str, str | None], None]
"""Told what happens: a message, and the node it is about (None: the lab as a whole)."""

R = TypeVar("R")

State = Literal["running", "booting", "off", "absent"]


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node as it is. `since` is seconds since the epoch; what a node that is off cannot have is None.

    `supervised` is False if the node runs but nobody would start it again at a reboot; `up` mends that.
    """

    node: str
    state: State
    address: IPv4Address
    since: float | None
    memory_bytes: int | None
    boot_id: str | None
    supervised: bool


def silent(message: str, node: str | None) -> None:
    """The listener that does not listen."""


def choose_supervision() -> Supervision:
    """How this machine runs nodes. Raises RequestError if it cannot."""
    if Path("/run/systemd/system").is_dir():
        return SystemdSupervision()
    if any(folder.name == "systemd" for folder in hierarchies()):
        return LegacySupervision()
    raise RequestError(
        "this machine has neither systemd as its init nor control groups of version 1",
        "Run the lab on a Debian or Ubuntu machine (or virtual machine) of its own.",
    )


def up(spec: LabSpec, listener: Listener = silent) -> tuple[NodeStatus, ...]:
    """Boot what is not up, keeping all disks; returns when every node answers over SSH. Quick if all is up.

    Raises RequestError if this machine or the lab's past does not allow it, NodesFailed if a node does not boot.
    """
    return _up(spec, spec.nodes, listener)


def start(spec: LabSpec, node: str, listener: Listener = silent) -> NodeStatus:
    """Boot one node that is off, as its power button would."""
    return _up(spec, (spec.node(node),), listener)[0]


def _up(spec: LabSpec, nodes: tuple[LabNode, ...], listener: Listener) -> tuple[NodeStatus, ...]:
    require_root()
    require("systemd-nspawn", "ip", "nsenter", "ssh")
    supervision = choose_supervision()
    folders = LabFolders(spec.site)
    disks.check_storage(folders.base)
    with locked(folders.lock):
        record.check_and_write(spec)
        keys = ensure_keys(spec)
        if said := limits.raise_limits():
            listener(said, None)
        network.ensure_bridge(spec)
        _prepare_roots(spec, nodes, listener)
        _each(nodes, lambda node: _bring_up(supervision, Container(spec, node), keys, listener), "did not come up")
        _check_peers(supervision, spec)
        return tuple(_status(supervision, Container(spec, node)) for node in nodes)


def down(spec: LabSpec, listener: Listener = silent) -> None:
    """Power all nodes off and remove everything that runs or is mounted. Disks and keys stay."""
    require_root()
    folders = LabFolders(spec.site)
    if not folders.base.exists():
        return
    with locked(folders.lock):
        _take_down(record.read(spec), listener, orderly=True)


def destroy(spec: LabSpec, listener: Listener = silent) -> None:
    """Remove the lab and all of its site's state. Nodes are not shut down first: nothing of them is kept."""
    require_root()
    folders = LabFolders(spec.site)
    if folders.base.exists():
        with locked(folders.lock):
            _take_down(record.read(spec), listener, orderly=False)
    else:
        _take_down(spec, listener, orderly=False)
    if is_there(spec):
        # Keys, secrets and authority of a lab are of no use without it.
        remove_tree(paths.site_state(spec.site))
    if root.forget(spec.site):
        limits.restore_limits()
        root.forget_all()
    listener("destroyed", None)


def is_there(spec: LabSpec) -> bool:
    """Whether anything of the lab is kept: disks, or only the keys and secrets that an `up` begins with."""
    return paths.site_state(spec.site).exists()


def describe_destruction(spec: LabSpec) -> str:
    """What `destroy` would remove, for a person to confirm."""
    known = record.read(spec)
    names = ", ".join(node.name for node in known.nodes)
    return (
        f"This ends the nodes {names} of lab {spec.site} at once and removes bridge {known.bridge}, the nodes' disks "
        f"and the site's keys, secrets and authority: everything below {paths.site_state(spec.site)}."
    )


def status(spec: LabSpec) -> tuple[NodeStatus, ...]:
    """Every node of the lab as it is now."""
    require_root()
    supervision = choose_supervision()
    with ThreadPoolExecutor(max_workers=len(spec.nodes)) as pool:
        return tuple(pool.map(lambda node: _status(supervision, Container(spec, node)), spec.nodes))


def shell(spec: LabSpec, node: str, *remote: str) -> int:
    """A shell on a node over SSH (or one command); returns its exit status."""
    if not LabFolders(spec.site).known_hosts.exists():
        raise RequestError(f"lab {spec.site} is not there", "Bring it up with `./mlops lab up`.")
    return subprocess.run(ssh_command(spec, spec.node(node), *remote, batch=False), check=False).returncode


def reboot(spec: LabSpec, node: str, listener: Listener = silent) -> NodeStatus:
    """Reboot a node in good order and wait until it is back."""
    supervision, container = _running(spec, node)
    before = _boot_id(_leader(supervision, container))
    os.kill(_leader(supervision, container), _SIGNAL_REBOOT)
    if not wait_until(lambda: _current_boot_id(supervision, container) not in (None, before), POWER_OFF_SECONDS):
        raise _failed(container, "did not reboot")
    _wait_booted(supervision, container, time.monotonic(), listener)
    return _status(supervision, container)


def power_cut(spec: LabSpec, node: str) -> None:
    """End a node at once, as a power cut does (what it wrote is in this machine's memory and stays)."""
    supervision, container = _running(spec, node)
    os.kill(_leader(supervision, container), signal.SIGKILL)
    _wait_off(supervision, container)


def netem(spec: LabSpec, node: str, *, delay_ms: float, loss_percent: float) -> str:
    """Delay and lose packets to a running node, until it reboots or `clear_netem`.

    Returns what does it: `netem` of the kernel, or `relay`, a program of ours where the kernel has none.
    """
    supervision, container = _running(spec, node)
    return impairment.impair(container, _leader(supervision, container), delay_ms, loss_percent)


def clear_netem(spec: LabSpec, node: str) -> None:
    """Take delay and loss away again."""
    supervision, container = _running(spec, node)
    impairment.clear(container, leader(supervision, container))


def _bring_up(supervision: Supervision, container: Container, keys: LabKeys, listener: Listener) -> None:
    """Bring one node up from whatever it is in."""
    began = time.monotonic()
    name = container.node.name
    # Between two boots of a node that reboots there is a keeper and no init.
    wait_until(lambda: bool(leader(supervision, container)) or not supervision.supervised(container), 10)
    if leader(supervision, container):
        if supervision.supervised(container) or supervision.adopt(container):
            _plug_in(supervision, container)
            _wait_booted(supervision, container, began, listener, first=False)
            return
        listener("nobody watches over it any more: powering it off to start it again", name)
        _power_off(supervision, container)
    supervision.forget(container)
    fresh = disks.attach(container, keys)
    listener("booting" if fresh else "resuming", name)
    supervision.start(container)
    _wait_booted(supervision, container, began, listener, first=fresh)


def _wait_booted(
    supervision: Supervision, container: Container, began: float, listener: Listener, *, first: bool = False
) -> Answer:
    """Wait until a node has booted. On its first boot every unit must work; later, a failed one is only told."""

    def ended() -> bool:
        return not supervision.supervised(container) and leader(supervision, container) is None

    wait_until(lambda: supervision.supervised(container), 2, every=0.02)
    answer = wait_ready(container.spec, container.node, BOOT_SECONDS, ended)
    if answer is None:
        raise _silent(supervision, container)
    if not answer.healthy:
        units = ", ".join(answer.failed_units) or "none failed"
        if first:
            raise _failed(container, f"booted, but systemd says {answer.state} (failed units: {units})")
        listener(f"up, but systemd says {answer.state} (failed units: {units})", container.node.name)
    else:
        listener(f"up after {time.monotonic() - began:.1f} s", container.node.name)
    return answer


def _take_down(spec: LabSpec, listener: Listener, *, orderly: bool) -> None:
    supervision = choose_supervision()

    def take_down(node: LabNode) -> None:
        container = Container(spec, node)
        if leader(supervision, container):
            listener("powering off" if orderly else "ending", node.name)
            (_power_off if orderly else _cut)(supervision, container)
        impairment.clear(container, None)
        supervision.forget(container)
        disks.detach(container.folders)

    _each(spec.nodes, take_down, "did not go down")
    supervision.forget_lab(spec)
    network.remove_bridge(spec)
    listener("down", None)


def _power_off(supervision: Supervision, container: Container) -> None:
    if (init := leader(supervision, container)) is None:
        return
    os.kill(init, _SIGNAL_POWER_OFF)
    if not wait_until(lambda: leader(supervision, container) is None, POWER_OFF_SECONDS):
        _cut(supervision, container)
    _wait_off(supervision, container)


def _cut(supervision: Supervision, container: Container) -> None:
    if init := leader(supervision, container):
        os.kill(init, signal.SIGKILL)
    _wait_off(supervision, container)


def _wait_off(supervision: Supervision, container: Container) -> None:
    def off() -> bool:
        return leader(supervision, container) is None and not supervision.supervised(container)

    if not wait_until(off, 20, every=0.05):
        raise _failed(container, "does not end")


def _prepare_roots(spec: LabSpec, nodes: Iterable[LabNode], listener: Listener) -> None:
    """Unpack the root file systems before the nodes need them all at once."""
    folders = LabFolders(spec.site)
    for release in sorted({node.release for node in nodes if not folders.node(node.name).made.exists()}):
        began = time.monotonic()
        root.root_file_system(release, spec.site)
        if (took := time.monotonic() - began) > 0.5:
            listener(f"unpacked the root file system of {release} in {took:.1f} s", None)


def _plug_in(supervision: Supervision, container: Container) -> None:
    """Put a node that outlived its bridge on the new one."""
    # Between two boots it has no link, and gets one with the next; whether it is reached is waited for later.
    with contextlib.suppress(network.NoLink):
        if init := leader(supervision, container):
            impairment.reconnect(container, init)


def _check_peers(supervision: Supervision, spec: LabSpec) -> None:
    """Raise NodesFailed if this machine keeps nodes from each other."""
    first, *others = (node for node in spec.nodes if leader(supervision, Container(spec, node)))
    if lost := unreachable_peers(spec, first, others):
        raise NodesFailed(f"{first.name} is up but cannot reach {', '.join(lost)}", network.filtering_advice(spec))


def _each(nodes: tuple[LabNode, ...], work: Callable[[LabNode], R], failure: str) -> list[R]:
    """Do something to all nodes at once. One node's failure is that node's: all are tried, then NodesFailed."""
    with ThreadPoolExecutor(max_workers=len(nodes)) as pool:
        futures = {node.name: pool.submit(work, node) for node in nodes}
    errors = {name: error for name, future in futures.items() if (error := future.exception())}
    for error in errors.values():
        if not isinstance(error, MlopsError) or isinstance(error, RequestError):
            raise error
    if errors:
        said = "\n".join(getattr(error, "message", str(error)) for error in errors.values())
        advice = "\n".join(dict.fromkeys(getattr(error, "advice", "") for error in errors.values()))
        raise NodesFailed(f"{', '.join(errors)} {failure}:\n{said}", advice)
    return [future.result() for future in futures.values()]


def _status(supervision: Supervision, container: Container) -> NodeStatus:
    init = leader(supervision, container)
    if init is None:
        state: State = "off" if container.folders.made.exists() else "absent"
        return NodeStatus(container.node.name, state, container.node.address, None, None, None, supervised=False)
    return NodeStatus(
        node=container.node.name,
        state="running" if listens(container.node) else "booting",
        address=container.node.address,
        since=started_at(init),
        memory_bytes=supervision.memory_bytes(container),
        boot_id=_current_boot_id(supervision, container),
        supervised=supervision.supervised(container),
    )


def _running(spec: LabSpec, name: str) -> tuple[Supervision, Container]:
    require_root()
    return choose_supervision(), Container(spec, spec.node(name))


def _leader(supervision: Supervision, container: Container) -> Pid:
    if (init := leader(supervision, container)) is None:
        raise RequestError(f"{container.node.name} is not running", "Bring it up with `./mlops lab up`.")
    return init


def _boot_id(init: Pid) -> str | None:
    try:
        return Path(f"/proc/{init}/root/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _current_boot_id(supervision: Supervision, container: Container) -> str | None:
    init = leader(supervision, container)
    return _boot_id(init) if init else None


def _silent(supervision: Supervision, container: Container) -> MlopsError:
    """The error for a node that never answered: it ended, or this machine's firewall is between."""
    if leader(supervision, container) is None or listens(container.node):
        return _failed(container, "did not boot")
    return NodesFailed(
        f"{container.node.name} runs but does not answer at {container.node.address} port 22 "
        f"(its console: {container.folders.console})",
        network.filtering_advice(container.spec),
    )


def _failed(container: Container, what: str) -> MlopsError:
    log = container.folders.console
    lines = log.read_text(errors="replace").splitlines()[-12:] if log.exists() else []
    said = "\n".join(f"    {line}" for line in lines)
    return NodesFailed(
        f"{container.node.name} {what}" + (f"; its console says last:\n{said}" if said else ""), f"See {log}."
    )
