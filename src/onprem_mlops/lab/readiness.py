"""Whether a node really is up: reached over SSH with its pinned key, and its systemd content."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from onprem_mlops.lab.folders import LabFolders
from onprem_mlops.lab.keys import user_key
from onprem_mlops.lab.spec import LabNode, LabSpec

_SSH_PORT = 22


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node said: systemd's own word for its state, and the units that failed."""

    state: str
    failed_units: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """No unit failed and nothing is still starting."""
        return self.state == "running"


def ssh_command(spec: LabSpec, node: LabNode, *remote: str, batch: bool = True) -> list[str]:
    """`ssh` to a node with the pinned host key and the deploy user's key, and with no one's own configuration."""
    folders = LabFolders(spec.site)
    options = {
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": str(folders.known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "IdentitiesOnly": "yes",
        # sshd's greeting counts, too, and on a machine that is busy to the last core it is slow.
        "ConnectTimeout": "20",
        "LogLevel": "ERROR",
    }
    if batch:
        options["BatchMode"] = "yes"
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    key = str(user_key(spec))
    return ["ssh", "-F", "none", *words, "-i", key, f"{spec.user}@{node.address}", *remote]


_ASK = "systemctl is-system-running --wait; systemctl list-units --failed --plain --no-legend | cut -d' ' -f1"


def wait_ready(spec: LabSpec, node: LabNode, seconds: float, ended: Callable[[], bool]) -> Answer | None:
    """Wait until the node answers over SSH and has finished booting.

    None if it does not within `seconds`, or if `ended` says that nobody boots it any more.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not ended():
        if listens(node) and (answer := _ask(spec, node, deadline - time.monotonic())):
            return answer
        time.sleep(0.2)
    return None


def listens(node: LabNode) -> bool:
    """Whether the node's SSH server answers."""
    try:
        with socket.create_connection((str(node.address), _SSH_PORT), timeout=1) as connection:
            # A peer that hangs up without a word is an error in the node's log.
            connection.sendall(b"SSH-2.0-lab\r\n")
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _ask(spec: LabSpec, node: LabNode, seconds: float) -> Answer | None:
    try:
        done = subprocess.run(
            ssh_command(spec, node, _ASK),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=max(seconds, 1),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    # 255: no connection yet, or the node still refuses logins while it boots.
    if done.returncode == 255 or not (lines := done.stdout.split()):
        return None
    return Answer(lines[0], tuple(lines[1:]))


def unreachable_peers(spec: LabSpec, node: LabNode, others: Iterable[LabNode]) -> tuple[str, ...]:
    """Names of the other nodes that this node cannot reach."""
    peers = {str(peer.address): peer.name for peer in others}
    # By ICMP: the site's own packet filter, once laid down, keeps nodes from each other's SSH port on purpose.
    probe = "; ".join(f"ping -c 1 -W 3 {address} >/dev/null 2>&1 || echo {address}" for address in peers)
    if not peers:
        return ()
    done = subprocess.run(
        ssh_command(spec, node, probe), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    return tuple(peers[address] for address in done.stdout.split())
