"""Checks across the parts of a site file. They look at what is right, so that no error hides another."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from onprem_mlops.errors import suggest
from onprem_mlops.site.document import Document, Loc
from onprem_mlops.site.model import LAB_LONGEST_PREFIX, LAB_NETWORKS, Lab, Networks, Node, Site, Ssh
from onprem_mlops.site.role import ALL, Role

RESERVED_NAMES = frozenset({"localhost", "all", "nodes", "pods", "controller", "mirror", "api"})
"""Node names that mean something else: to the resolver, to openings, or as names of the site's services."""

CONTROL_PLANE = "control_plane"


@dataclass(frozen=True)
class Parts:
    """What could be read. A wrong part is None and takes no part in the checks."""

    networks: Networks | None
    nodes: tuple[Node | None, ...]
    on: tuple[str, ...]
    roles: Mapping[str, Role]
    ssh: Ssh | None
    lab: Lab | None

    @property
    def right_nodes(self) -> list[tuple[Loc, Node]]:
        """The nodes that are right, with their places."""
        return [(("nodes", index), node) for index, node in enumerate(self.nodes) if node is not None]

    @property
    def all_right(self) -> bool:
        """Whether every node could be read, so that counting them makes sense."""
        return all(node is not None for node in self.nodes)


def check_parts(document: Document, parts: Parts) -> None:
    """Note everything that is wrong between parts."""
    _check_unique(document, parts)
    for loc, node in parts.right_nodes:
        _check_node_name(document, loc, node, parts)
        _check_groups(document, loc, node, parts)
    if parts.networks is not None:
        _check_networks(document, parts.networks)
        _check_addresses(document, parts.networks, parts)
        if parts.lab is not None:
            _check_lab(document, parts.lab, parts.networks, parts)
    if parts.all_right and parts.nodes:
        _check_control_planes(document, parts)
        _check_empty_groups(document, parts)
    _check_requirements(document, parts)
    if parts.ssh is not None:
        _check_key(document, parts.ssh.key)


def _check_unique(document: Document, parts: Parts) -> None:
    for field, what in (("name", "name"), ("address", "address"), ("host_key", "host key")):
        first: dict[object, Node] = {}
        for loc, node in parts.right_nodes:
            value = getattr(node, field)
            if value is None:
                continue
            if value in first:
                _report_twice(document, (*loc, field), what, first[value])
            first.setdefault(value, node)


def _report_twice(document: Document, loc: Loc, what: str, first: Node) -> None:
    match what:
        case "name":
            message = f'a second node has the name "{first.name}"; give each node its own'
        case "address":
            message = f'{first.address} is already the address of node "{first.name}"; give each node its own'
        case _:
            message = (
                f'node "{first.name}" has the same host key; a key belongs to one machine: '
                f"make new ones with ssh-keygen -A on cloned machines and scan again"
            )
    document.report(loc, message)


def _check_node_name(document: Document, loc: Loc, node: Node, parts: Parts) -> None:
    if node.name in RESERVED_NAMES or node.name in _known_groups(parts):
        document.report(
            (*loc, "name"),
            f'"{node.name}" is a reserved name; call the node something else, such as "{node.name}1"',
        )


def _known_groups(parts: Parts) -> set[str]:
    """Groups that roles know, also those that are off: a node may be in a group before its role is on."""
    return {group for role in parts.roles.values() for group in role.groups} - {ALL}


def _check_groups(document: Document, loc: Loc, node: Node, parts: Parts) -> None:
    known = _known_groups(parts)
    if not node.groups:
        document.report(
            (*loc, "groups"),
            f'node "{node.name}" is in no group, so nothing runs on it; put it into one of: {", ".join(sorted(known))}',
        )
    seen: set[str] = set()
    for index, group in enumerate(node.groups):
        place = (*loc, "groups", index)
        if group == ALL:
            document.report(place, 'every node is in group "all" already; remove it')
        elif known and group not in known:
            document.report(place, f'unknown group "{group}"; {suggest(group, known)}')
        elif group in seen:
            document.report(place, f'group "{group}" is in the list twice; keep one')
        seen.add(group)


def _check_networks(document: Document, networks: Networks) -> None:
    named = [("nodes", networks.nodes), ("pods", networks.pods), ("services", networks.services)]
    for index, (name, network) in enumerate(named):
        for other_name, other in named[:index]:
            if network.overlaps(other):
                where = name if document.has(("networks", name)) else other_name
                document.report(
                    ("networks", where),
                    f"the networks of {other_name} ({other}) and {name} ({network}) overlap; "
                    f"choose networks that share no address",
                )
    _check_size(document, "nodes", networks.nodes.prefixlen, 29)
    _check_size(document, "pods", networks.pods.prefixlen, 22)
    _check_size(document, "services", networks.services.prefixlen, 24)


def _check_size(document: Document, name: str, prefix: int, longest: int) -> None:
    if prefix > longest:
        document.report(("networks", name), f"the network of {name} is too small (/{prefix}); use /{longest} or larger")


def _check_addresses(document: Document, networks: Networks, parts: Parts) -> None:
    for loc, node in parts.right_nodes:
        if message := _address_problem(node.address, networks):
            document.report((*loc, "address"), message)
    if networks.api_address is not None:
        _check_api_address(document, networks.api_address, networks, parts)


def _address_problem(address: IPv4Address, networks: Networks) -> str:
    network = networks.nodes
    if address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local:
        return f"{address} is loopback, multicast, link-local or 0.0.0.0; use one of {network}"
    if address not in network:
        return f"{address} is outside the network of the nodes; use one of {network}, or correct networks.nodes"
    if network.prefixlen < 31 and address in (network.network_address, network.broadcast_address):
        which = "network" if address == network.network_address else "broadcast"
        return f"{address} is the {which} address of {network}; use one between {network[1]} and {network[-2]}"
    return ""


def _check_api_address(document: Document, address: IPv4Address, networks: Networks, parts: Parts) -> None:
    loc = ("networks", "api_address")
    if message := _address_problem(address, networks):
        document.report(loc, message)
    for _, node in parts.right_nodes:
        if node.address == address:
            document.report(
                loc,
                f'{address} is the address of node "{node.name}"; the API needs a free one that can move',
            )


def _check_lab(document: Document, lab: Lab, networks: Networks, parts: Parts) -> None:
    network = networks.nodes
    if not network.subnet_of(LAB_NETWORKS) or network.prefixlen > LAB_LONGEST_PREFIX:
        message = f"a lab's network lies within {LAB_NETWORKS} and is a /{LAB_LONGEST_PREFIX} or larger"
        document.report(("networks", "nodes"), f"{message}; use one such as 10.77.8.0/24")
        return
    if parts.ssh is not None and parts.ssh.user == "root":
        document.report(("ssh", "user"), 'the account of a lab\'s nodes is not root; use one such as "mlops"')
    own = lab.host_address or network[1]
    loc = ("lab", "host_address")
    if message := _address_problem(own, networks):
        document.report(loc, message)
    for at, node in parts.right_nodes:
        if node.address == own:
            message = f'{own} is both this machine\'s address in the lab and that of node "{node.name}"; change one'
            document.report(loc if lab.host_address else (*at, "address"), message)


def _check_control_planes(document: Document, parts: Parts) -> None:
    if CONTROL_PLANE not in _known_groups(parts):
        return
    count = sum(CONTROL_PLANE in node.groups for _, node in parts.right_nodes)
    if count and count % 2 == 0:
        document.report(
            ("nodes",),
            f"{count} control planes: an even number survives no more failures than {count - 1}; "
            f"have {count - 1} or {count + 1}",
            at_key=True,
        )
    elif count > 1 and parts.networks is not None and parts.networks.api_address is None:
        document.report(
            ("networks",),
            f"{count} control planes but no `api_address`; add a free address of {parts.networks.nodes} "
            f"that moves to a healthy control plane",
            at_key=True,
        )


def _check_empty_groups(document: Document, parts: Parts) -> None:
    filled = {group for _, node in parts.right_nodes for group in node.groups} | {ALL}
    needed: dict[str, list[str]] = {}
    for name in parts.on:
        for group in parts.roles[name].settings.groups:
            if group not in filled:
                needed.setdefault(group, []).append(name)
    for group, names in needed.items():
        document.report(
            ("nodes",),
            f'no node is in group "{group}", which {_roles(names)} on; put a node into it, or take '
            f"{'it' if len(names) == 1 else 'them'} out of `roles`",
            at_key=True,
        )


def _roles(names: Iterable[str]) -> str:
    names = list(names)
    quoted = ", ".join(f'"{name}"' for name in names)
    return f"role {quoted} runs" if len(names) == 1 else f"roles {quoted} run"


def _check_requirements(document: Document, parts: Parts) -> None:
    for name in parts.on:
        for needed in parts.roles[name].settings.requires:
            if needed not in parts.on:
                listed = document.at(("roles",))
                index = listed.index(name) if isinstance(listed, list) else 0
                document.report(
                    ("roles", index),
                    f'role "{name}" needs role "{needed}", which is off; add "{needed}" to `roles`',
                )


def _check_key(document: Document, key: Path) -> None:
    loc = ("ssh", "key")
    if document.at(loc) == "generated":
        return
    shown = _with_tilde(key)
    try:
        mode = stat.S_IMODE(key.stat().st_mode) if key.is_file() else None
    except PermissionError:
        mode = None
    if mode is None:
        message = f"there is no file {shown}; make a key with ssh-keygen -t ed25519, or write where yours is"
        document.report(loc, message)
    elif mode & 0o077:
        message = f"{shown} has mode {mode:o}, so others can read it and ssh refuses it; run chmod 600 {shown}"
        document.report(loc, message)
    elif not os.access(key, os.R_OK):
        document.report(loc, f"{shown} cannot be read by you; use a key of your own")


def _with_tilde(path: Path) -> str:
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def check_names(document: Document, site: Site) -> None:
    """Note names of services that are also names of nodes."""
    nodes = {site.full_name(node): index for index, node in enumerate(site.nodes)}
    for role, settings in site.role_settings.items():
        for name in settings.names(site):
            if name in nodes:
                document.report(
                    ("nodes", nodes[name], "name"),
                    f'"{name}" is the name of a service of role "{role}"; call the node something else',
                )
