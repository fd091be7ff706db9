"""What a lab is: its nodes, their addresses, and the limits that keep it apart from the networks around it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Literal, Self, get_args

from onprem_mlops.errors import RequestError
from onprem_mlops.site import LAB_LONGEST_PREFIX, LAB_NETWORKS, Site

Release = Literal["bookworm", "trixie"]

DATA_FOLDERS = ("/var/lib/containerd", "/var/lib/kubelet", "/var/lib/etcd")
"""Folders of a node that need a real file system: containerd's snapshots are overlays, and overlays do not stack."""

DEFAULT_USER = "mlops"

INTERFACE_NAME_LIMIT = 15
"""The kernel's limit on interface names (IFNAMSIZ - 1)."""

_RELEASES: dict[Literal[12, 13] | None, Release] = {None: "bookworm", 12: "bookworm", 13: "trixie"}

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class LabNode:
    """One node. `memory_mib` limits all its processes together; None leaves it the machine's memory."""

    name: str
    address: IPv4Address
    release: Release = "bookworm"
    memory_mib: int | None = None


@dataclass(frozen=True, slots=True)
class LabSpec:
    """A whole lab. Raises RequestError, naming every problem at once, if it cannot be built.

    `user` is the SSH user, who has sudo without a password. `host_address` is this machine's address on the bridge;
    None takes the first of the network. `data_folders` of each node lie on this machine's own file system.
    """

    site: str
    nodes: tuple[LabNode, ...]
    network: IPv4Network
    bridge: str
    user: str = DEFAULT_USER
    host_address: IPv4Address | None = None
    data_folders: tuple[str, ...] = field(default=DATA_FOLDERS)

    def __post_init__(self) -> None:
        if problems := [*_site_problems(self), *_node_problems(self)]:
            raise RequestError(
                f"lab {self.site}: " + "; ".join(problems), "Correct the lab's site file; nothing was touched."
            )

    @property
    def controller(self) -> IPv4Interface:
        """The address of this machine on the lab's bridge."""
        address = self.host_address or self.network.network_address + 1
        return IPv4Interface(f"{address}/{self.network.prefixlen}")

    def node(self, name: str) -> LabNode:
        """The node of that name. Raises RequestError if there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        names = ", ".join(node.name for node in self.nodes)
        raise RequestError(f"lab {self.site} has no node {name}", f"Its nodes are {names}.")

    def machine(self, node: LabNode) -> str:
        """The node's name on this machine: unique among labs, where `cp1` alone is not."""
        return f"{self.site}-{node.name}"

    @classmethod
    def of(
        cls,
        site: str,
        nodes: dict[str, str],
        *,
        network: str = "10.77.0.0/24",
        bridge: str | None = None,
        release: Release = "bookworm",
    ) -> Self:
        """A lab from plain values: node names to addresses. The bridge's name follows from the site's."""
        return cls(
            site=site,
            nodes=tuple(LabNode(name, IPv4Address(address), release) for name, address in nodes.items()),
            network=IPv4Network(network),
            bridge=bridge or bridge_name(site),
        )

    @classmethod
    def from_site(cls, site: Site) -> Self:
        """The lab that a site file describes. Raises RequestError if the site is no lab."""
        if site.lab is None:
            raise RequestError(
                f"site {site.name} is no lab", "Only a site with a `lab:` section is made on this machine."
            )
        return cls(
            site=site.name,
            nodes=tuple(LabNode(node.name, node.address, _RELEASES[node.release]) for node in site.nodes),
            network=site.networks.nodes,
            bridge=site.lab.bridge,
            user=site.ssh.user,
            host_address=site.lab.host_address,
        )


def bridge_name(site: str) -> str:
    """The bridge of a site, cut to what the kernel allows."""
    return f"br-{site}"[:INTERFACE_NAME_LIMIT].rstrip("-")


def _site_problems(spec: LabSpec) -> list[str]:
    problems = []
    if not _NAME.fullmatch(spec.site):
        problems.append(f"site name {spec.site!r} is not made of a-z, 0-9 and dashes")
    if not spec.network.subnet_of(LAB_NETWORKS):
        problems.append(f"network {spec.network} is outside {LAB_NETWORKS}, where lab networks must lie")
    if not 16 <= spec.network.prefixlen <= LAB_LONGEST_PREFIX:
        problems.append(f"network {spec.network} has no room for nodes and the controller")
    if not 0 < len(spec.bridge) <= INTERFACE_NAME_LIMIT or not _NAME.fullmatch(spec.bridge):
        problems.append(f"bridge name {spec.bridge!r} is not 1-{INTERFACE_NAME_LIMIT} of a-z, 0-9 and dashes")
    problems += [
        f"data folder {folder!r} is not an absolute path below /var or /srv"
        for folder in spec.data_folders
        if not re.fullmatch(r"/(var|srv)(/[A-Za-z0-9._-]+)+", folder) or ".." in folder
    ]
    if spec.host_address and spec.host_address not in spec.network:
        problems.append(f"this machine's address {spec.host_address} is outside the lab's network {spec.network}")
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", spec.user) or spec.user == "root":
        problems.append(f"SSH user {spec.user!r} is no user name, or is root, who must not log in")
    if not spec.nodes:
        problems.append("there is no node")
    return problems


def _node_problems(spec: LabSpec) -> list[str]:
    problems: list[str] = []
    names: dict[str, LabNode] = {}
    addresses: dict[IPv4Address, LabNode] = {}
    for node in spec.nodes:
        problems += _one_node_problems(spec, node)
        if node.name in names:
            problems.append(f"two nodes are named {node.name}")
        if other := addresses.get(node.address):
            problems.append(f"{other.name} and {node.name} have the same address {node.address}")
        names[node.name] = node
        addresses[node.address] = node
    return problems


def _one_node_problems(spec: LabSpec, node: LabNode) -> list[str]:
    problems = []
    if not _NAME.fullmatch(node.name) or len(spec.machine(node)) > 64:
        problems.append(f"node name {node.name!r} is not a short name of a-z, 0-9 and dashes")
    if node.release not in get_args(Release):
        problems.append(f"{node.name}: release {node.release!r} is not one of {', '.join(get_args(Release))}")
    reserved = (spec.network.network_address, spec.controller.ip, spec.network.broadcast_address)
    if node.address not in LAB_NETWORKS:
        problems.append(f"{node.name}: address {node.address} is outside {LAB_NETWORKS}; lab addresses must lie there")
    elif node.address not in spec.network:
        problems.append(f"{node.name}: address {node.address} is outside the lab's network {spec.network}")
    elif node.address in reserved:
        problems.append(f"{node.name}: address {node.address} is reserved (the controller is {spec.controller.ip})")
    if node.memory_mib is not None and node.memory_mib < 128:
        problems.append(f"{node.name}: {node.memory_mib} MiB of memory are too little to boot")
    return problems
