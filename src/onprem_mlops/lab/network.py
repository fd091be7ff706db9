"""The lab's network: one bridge, reaching the nodes and this machine, and nothing else."""

from __future__ import annotations

import hashlib
import json
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from onprem_mlops.errors import MlopsError, RequestError
from onprem_mlops.lab.host import HostCommandFailed, Pid, run, succeeds
from onprem_mlops.lab.spec import LabSpec

_FILTER_BRIDGES = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


class NoLink(MlopsError):
    """A node has no network link (any more): it ends, or is between two boots."""


def ensure_bridge(spec: LabSpec) -> None:
    """Make the bridge with the controller's address. Nodes that run without it hang in the air.

    Raises RequestError if the network is in use elsewhere.
    """
    refuse_overlap(spec)
    if not has_bridge(spec):
        # A fixed address: a bridge otherwise changes its own with each port, and peers talk to the old one.
        address = hashlib.sha256(spec.bridge.encode()).hexdigest()
        mac = ":".join(["02", *(address[i : i + 2] for i in range(0, 10, 2))])
        run("ip", "link", "add", spec.bridge, "address", mac, "type", "bridge")
    run("ip", "address", "replace", str(spec.controller), "dev", spec.bridge)
    run("ip", "link", "set", spec.bridge, "up")


def has_bridge(spec: LabSpec) -> bool:
    """Whether the lab's bridge is there."""
    return (Path("/sys/class/net") / spec.bridge).exists()


def refuse_overlap(spec: LabSpec) -> None:
    """Raise RequestError if this machine already routes some of the lab's addresses elsewhere."""
    routes: list[dict[str, Any]] = json.loads(run("ip", "-json", "-4", "route", "show", "table", "main") or "[]")
    for route in routes:
        if route["dst"] == "default" or route.get("dev") == spec.bridge:
            continue
        if IPv4Network(route["dst"], strict=False).overlaps(spec.network):
            raise RequestError(
                f"lab network {spec.network} overlaps {route['dst']} on {route.get('dev', 'this machine')}",
                "Choose another network within 10.77.0.0/16 in the lab's site file, or bring the other lab down.",
            )


def remove_bridge(spec: LabSpec) -> None:
    """Remove the bridge and whatever is still plugged into it."""
    if not has_bridge(spec):
        return
    for port in json.loads(run("ip", "-json", "link", "show", "master", spec.bridge) or "[]"):
        # Nodes' links vanish by themselves while we look.
        succeeds("ip", "link", "delete", port["ifname"])
    run("ip", "link", "delete", spec.bridge)


def port_of(init: Pid) -> str:
    """This machine's end of a running node's network link. Raises NoLink while it has none."""
    try:
        inside = json.loads(run("nsenter", "--target", str(init), "--net", "ip", "-json", "link", "show", "host0"))
    except HostCommandFailed as error:
        raise NoLink(error.message) from None
    index = inside[0]["link_index"]
    links: list[dict[str, Any]] = json.loads(run("ip", "-json", "link", "show"))
    for link in links:
        if link["ifindex"] == index:
            return str(link["ifname"])
    raise NoLink(f"this machine's end of the link of process {init} is gone")


def filtering_advice(spec: LabSpec) -> str:
    """What on this machine may keep packets from or to nodes, for a person whose nodes are not reached."""
    rules = f"accept what comes in from bridge {spec.bridge}"
    if _FILTER_BRIDGES.exists() and _FILTER_BRIDGES.read_text().strip() == "1":
        # Set by br_netfilter, as on any machine that also runs Docker.
        rules += (
            ", and forwarding within it (net.bridge.bridge-nf-call-iptables is 1: bridged packets are filtered too)"
        )
    return f"See `nft list ruleset`: this machine's firewall must {rules}. The lab changes no firewall by itself."
