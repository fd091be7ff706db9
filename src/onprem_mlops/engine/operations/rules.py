"""Packet filter rules that components leave in the kernel when they go."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from pyinfra.context import host

from onprem_mlops.engine.facts import Probe
from onprem_mlops.engine.operation import Command, operation

_TABLES = ("raw", "mangle", "nat", "filter")


@operation
def chains_gone(pattern: str) -> Iterator[Command]:
    """No chains and rules of iptables that a component made; tables that are then empty go too.

    Args:
        pattern: basic regular expression that its lines in `iptables-save` match, and nobody else's do.
    """
    for family in ("ip", "ip6"):
        tool = f"{family}tables"
        quoted = shlex.quote(pattern)
        if host.get_fact(Probe, command=f"{tool}-save | grep -q -e {quoted}").ok:
            yield Command(f"{tool}-save | grep -v -e {quoted} | {tool}-restore")
        for table in _TABLES:
            # Made by iptables on its first use, and not there on a node that never had any.
            empty = f"nft list table {family} {table} && ! {tool}-save -t {table} | grep -q -e '^-A' -e '^:.* - '"
            if host.get_fact(Probe, command=empty).ok:
                yield Command(f"nft delete table {family} {table}")


@operation
def table_gone(name: str) -> Iterator[Command]:
    """No nftables table of this name in any family."""
    found = host.get_fact(Probe, command=f"nft list tables | awk '$3 == \"{name}\" {{print $2}}'")
    for family in found.text.split():
        yield Command(f"nft delete table {family} {shlex.quote(name)}")


@operation
def sets_gone(pattern: str) -> Iterator[Command]:
    """No ipset whose name begins with the pattern."""
    found = host.get_fact(Probe, command=f"ipset list -n | grep '^{pattern}'").text.split()
    if found:
        yield Command("; ".join(f"ipset destroy {shlex.quote(one)}" for one in found))


@operation
def links_gone(pattern: str, *, protocol: int) -> Iterator[Command]:
    """No network interfaces whose name matches, and no routes that were set by this routing protocol's number."""
    names = f"ip -o link show | sed -n 's/^[0-9]*: \\({pattern}\\)[:@].*/\\1/p'"
    found = host.get_fact(Probe, command=names).text.split()
    if found:
        yield Command("; ".join(f"ip link delete {shlex.quote(one)} 2>/dev/null" for one in found) + "; true")
    routes = f"ip -4 route show proto {protocol}"
    if host.get_fact(Probe, command=routes).text.strip():
        yield Command(f"ip -4 route flush proto {protocol}")
