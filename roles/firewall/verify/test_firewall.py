"""What reaches a node: the rules it has loaded, and what other machines find when they try.

Expectations come from the openings that roles declare; findings from real connections between the machines.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

import pytest

from onprem_mlops.roles import ALL, Opening
from onprem_mlops.verify.suite import (
    Answer,
    Controller,
    DoesNotApply,
    Listener,
    Node,
    NodeHost,
    Nodes,
    Site,
    Target,
    listener_on,
    listeners,
    scan_from,
    udp_answer_from,
)
from roles.firewall.settings import Settings

CONTROLLER = "the controller"

SOURCES = 3
"""Nodes of the same groups from which every other node is scanned."""

COMMON_PORTS: tuple[int, ...] = (
    21,
    22,
    23,
    25,
    53,
    80,
    110,
    111,
    139,
    143,
    179,
    389,
    443,
    445,
    587,
    631,
    636,
    873,
    993,
    995,
    1433,
    1521,
    2049,
)
COMMON_PORTS += (
    2375,
    2376,
    2379,
    2380,
    2381,
    3000,
    3128,
    3306,
    3389,
    4240,
    5000,
    5432,
    5473,
    5900,
    6379,
    6443,
    8000,
    8080,
)
COMMON_PORTS += (
    8443,
    8472,
    9000,
    9090,
    9091,
    9098,
    9099,
    9100,
    9200,
    9300,
    10248,
    10249,
    10250,
    10255,
    10256,
    10257,
    10259,
    11211,
    27017,
)
"""Ports that attackers and scanners try first, and those of every Kubernetes component."""


@dataclass(frozen=True)
class Seen:
    """One scan of the whole site: from each machine, every port of every other."""

    listening: dict[str, list[Listener]]
    answers: dict[tuple[str, str, int], Answer]
    """By source, node and port."""


@pytest.fixture(scope="module")
def seen(site: Site, nodes: Nodes, controller: Controller) -> Seen:
    """The scan, made once."""
    listening = {name: listeners(nodes[name]) for name in nodes}
    ports = sorted(
        {one.port for found in listening.values() for one in found if one.protocol == "tcp"} | set(COMMON_PORTS)
    )
    names = {nodes[name].address: name for name in nodes}  # connects to each, before threads do anything
    answers: dict[tuple[str, str, int], Answer] = {}

    def scan(source: str) -> dict[Target, Answer]:
        targets = [(address, port) for address, name in names.items() if name != source for port in ports]
        return controller.scan(targets) if source == CONTROLLER else scan_from(nodes[source], targets)

    sources = (*_representatives(site), CONTROLLER)
    # Scans wait for silence most of the time. A connection is used by one thread only.
    with ThreadPoolExecutor(len(sources)) as pool:
        for source, found in zip(sources, pool.map(scan, sources), strict=True):
            answers |= {(source, names[address], port): answer for (address, port), answer in found.items()}
    return Seen(listening, answers)


def _representatives(site: Site) -> list[str]:
    """Nodes to scan from: rules know groups, so a few nodes of each combination of groups stand for all."""
    chosen: dict[frozenset[str], list[str]] = {}
    for node in site.nodes:
        chosen.setdefault(frozenset(node.groups), []).append(node.name)
    return [name for names in chosen.values() for name in names[:SOURCES]]


def _openings(site: Site, node: Node) -> Iterator[Opening]:
    for settings in site.role_settings.values():
        yield from settings.openings(site, node)


def _allows(site: Site, opening: Opening, source: str) -> bool:
    """Whether an opening is meant for a machine of the site."""
    if source == CONTROLLER:
        return "controller" in opening.sources
    node = site.node(source)
    groups = {ALL, "nodes", *node.groups}
    networks = [IPv4Network(word) for word in opening.sources if "/" in word]
    return not groups.isdisjoint(opening.sources) or any(node.address in network for network in networks)


def _declared(site: Site, source: str, target: str, port: int) -> bool:
    return any(
        one.protocol == "tcp" and one.ports[0] <= port <= one.ports[1] and _allows(site, one, source)
        for one in _openings(site, site.node(target))
    )


@pytest.mark.controls("CIS Debian 4.3")
def test_default_is_drop(node: NodeHost) -> None:
    """Packets that no rule lets in are dropped."""
    ruleset = json.loads(node.check_output("nft -j list ruleset"))["nftables"]
    chains = [one["chain"] for one in ruleset if "chain" in one]
    policies = [chain.get("policy") for chain in chains if chain.get("hook") == "input" and chain["family"] == "inet"]
    assert "drop" in policies, f"{node.name}: no input chain with policy drop; there are: {policies or 'none'}"


def test_same_after_reboot(node: NodeHost) -> None:
    """The rules that are loaded now are the ones that a reboot loads."""
    service = node.service("nftables")
    assert service.is_enabled, f"{node.name}: nftables.service is not enabled: after a reboot everything is open"
    path = node.check_output("systemctl show nftables -P ExecStart | grep -o 'nft -f [^ ;]*' | head -1").split()[-1]
    # Loaded into a network namespace of its own, as the boot would find it: empty.
    boot = node.run("unshare --net sh -c 'nft -f %s && nft -s list ruleset'", path)
    assert boot.rc == 0, f"{node.name}: {path} cannot be loaded: {boot.stderr.strip()}"
    tables = [line.split()[1:3] for line in boot.stdout.splitlines() if line.startswith("table ")]
    assert tables, f"{node.name}: {path} holds no table"
    now = "\n".join(node.check_output("nft -s list table %s %s", *table) for table in tables)
    differ = sorted(set(_rules(boot.stdout)) ^ set(_rules(now)))
    assert not differ, f"{node.name}: loaded now and loaded by {path} differ in: {'; '.join(differ[:5])}"


def _rules(listing: str) -> list[str]:
    return [line.strip() for line in listing.splitlines() if line.strip() and not line.strip().startswith("comment")]


def test_open_ports_are_declared(site: Site, seen: Seen) -> None:
    """Every port that answers on a node, from any other machine, is one that a role declared for that machine.

    The message names port and process. If the service is wanted, its role declares the opening; if not, stop it.
    """
    wrong = [
        f"{target}:{port} ({_process(seen, target, port)}) answers {source}"
        for (source, target, port), answer in seen.answers.items()
        if answer == "open" and not _declared(site, source, target, port)
    ]
    assert not wrong, f"{len(wrong)} connections that nothing declares: {'; '.join(wrong[:12])}"


def test_shut_ports_are_silent(site: Site, seen: Seen) -> None:
    """Ports that are not declared do not even say that they are closed: their packets are dropped."""
    wrong = [
        f"{target}:{port} refuses {source}"
        for (source, target, port), answer in seen.answers.items()
        if answer == "refused" and not _declared(site, source, target, port)
    ]
    assert not wrong, f"{len(wrong)} packets reached a node that should drop them: {'; '.join(wrong[:12])}"


def test_declared_ports_answer(site: Site, seen: Seen) -> None:
    """Every declared port with a service behind it answers the machines that it is declared for."""
    wrong = [
        f"{target}:{port} ({_process(seen, target, port)}) does not answer {source}"
        for (source, target, port), answer in seen.answers.items()
        if answer != "open" and _process(seen, target, port, site) and _declared(site, source, target, port)
    ]
    assert not wrong, f"{len(wrong)} declared connections that fail: {'; '.join(wrong[:12])}"


def _process(seen: Seen, target: str, port: int, site: Site | None = None) -> str:
    """Who listens there on all addresses (with ``site``: or on the node's own)."""
    wildcards = {"0.0.0.0", "*", "::"}  # noqa: S104 - compared with, not bound to
    addresses = wildcards | (
        {str(site.node(target).address)} if site else {one.address for one in seen.listening[target]}
    )
    names = [
        one.process or "the kernel"
        for one in seen.listening[target]
        if one.protocol == "tcp" and one.port == port and one.address in addresses
    ]
    return names[0] if names else ""


def test_datagram_ports_are_declared(node: NodeHost, site: Site) -> None:
    """Every UDP port on which a node waits for others is one that a role declared."""
    opened = [one.ports for one in _openings(site, node.site_node) if one.protocol == "udp"]
    wrong = [
        str(one)
        for one in listeners(node)
        if one.protocol == "udp" and not one.loopback and not any(low <= one.port <= high for low, high in opened)
    ]
    assert not wrong, f"{node.name}: {'; '.join(wrong)}; declared are {opened or 'none'}"


def test_new_listener_is_shut(node: NodeHost, site: Site, nodes: Nodes, controller: Controller) -> None:
    """A service that somebody starts without declaring its port cannot be reached from any other machine."""
    others = [name for name in nodes if name != node.name][:1]
    with listener_on(node) as port:
        target = (node.address, port)
        # The control: without it, a listener that never started would look like a firewall.
        assert scan_from(node, [target])[target] == "open", f"{node.name}: the test's own listener does not answer"
        assert udp_answer_from(node, target) == "open", f"{node.name}: the test's own listener does not answer"
        found = _found(target, [nodes[name] for name in others], controller)
    if any(_declared(site, source, node.name, port) for source in (CONTROLLER, *others)):
        raise DoesNotApply(f"port {port}, chosen by the kernel, lies in a declared range")
    wrong = [f"{source} found it {answer}" for source, answer in found.items() if answer != "silent"]
    assert not wrong, f"{node.name}: port {port} was opened for this test and {'; '.join(wrong)}"


def _found(target: Target, others: list[NodeHost], controller: Controller) -> dict[str, Answer]:
    """What a port answers over TCP and UDP: to the controller, and to other nodes."""

    def try_from(other: NodeHost) -> dict[str, Answer]:
        tcp, udp = scan_from(other, [target])[target], udp_answer_from(other, target)
        return {f"{other.name} (TCP)": tcp, f"{other.name} (UDP)": udp}

    with ThreadPoolExecutor(len(others) + 1) as pool:
        here = pool.submit(controller.scan, [target])
        found = {key: value for one in pool.map(try_from, others) for key, value in one.items()}
        return {CONTROLLER: here.result()[target], **found}


def test_controller_is_not_locked_out(node: NodeHost, settings: Settings) -> None:
    """The rules let this machine back in over SSH."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((node.address, 9))
        here = IPv4Address(probe.getsockname()[0])
    listing = node.check_output("nft list chain inet %s input", settings.table)
    told = [line for line in listing.splitlines() if "tcp dport" in line and "accept" in line and _mentions(line, here)]
    assert told, f"{node.name}: no rule accepts TCP from {here}; this connection lives on as an established one only"


def _mentions(line: str, address: IPv4Address) -> bool:
    words = line.replace("{", " ").replace("}", " ").replace(",", " ").split()
    networks = [IPv4Network(word) for word in words if word[0].isdigit() and word.count(".") == 3 and "-" not in word]
    return any(address in network for network in networks)
