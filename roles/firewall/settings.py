"""Which packets a node takes in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import ClassVar

from pydantic import Field

from onprem_mlops.roles import ALL, Opening, RoleSettings
from onprem_mlops.site import Site


class Settings(RoleSettings):
    """An nftables packet filter on every node: what no role declared is dropped."""

    groups: ClassVar[tuple[str, ...]] = (ALL,)
    requires: ClassVar[tuple[str, ...]] = ("node",)

    table: ClassVar[str] = "onprem"
    path: ClassVar[str] = "/etc/nftables.d/onprem.nft"

    admin_networks: tuple[IPv4Network, ...] = Field(
        (),
        description="Networks that may do what the controller may, such as SSH. None: only the address that the "
        "deploy comes from. Name them if several machines deploy, else each deploy closes the others out.",
    )
    log_drops: bool = Field(True, description="Log dropped packets to the kernel log, at most ten a minute.")

    def sources(self, site: Site, opening: Opening, controller: IPv4Address | None) -> tuple[IPv4Network, ...]:
        """The networks an opening is for: single addresses of nodes, the pods' network, the controller's.

        `controller` is the address that a deploy comes from; it is left out where an admin network holds it.
        """
        found = {network for source in opening.sources for network in self._networks(site, source, controller)}
        return tuple(sorted(found))

    def _networks(self, site: Site, source: str, controller: IPv4Address | None) -> Iterator[IPv4Network]:
        if source == "controller":
            yield from self.admin_networks
            if controller is not None and not any(controller in network for network in self.admin_networks):
                yield IPv4Network(controller)
        elif source == "pods":
            yield site.networks.pods
        elif "/" in source:
            yield IPv4Network(source)
        else:
            group = ALL if source == "nodes" else source
            yield from (IPv4Network(node.address) for node in site.in_group(group))

    def problems(self, site: Site) -> Iterable[str]:
        """Every source that a role names must be known, else its port would stay shut without a word."""
        known = {"controller", "pods", "nodes", ALL} | {
            group for settings in site.role_settings.values() for group in settings.groups + settings.optional_groups
        }
        known |= set(site.groups)
        wrong = {
            (role, source)
            for role, settings in site.role_settings.items()
            for node in site.nodes
            for opening in settings.openings(site, node)
            for source in opening.sources
            if "/" not in source and source not in known
        }
        for role, source in sorted(wrong):
            yield f'role "{role}" opens a port to "{source}", which is neither a group nor a network'

    @staticmethod
    def merged(openings: Iterable[Opening]) -> tuple[Opening, ...]:
        """Openings in a stable order, each once."""
        return tuple(sorted(set(openings), key=lambda one: (one.protocol, str(one.port), one.sources, one.why)))


def rule(opening: Opening, sources: tuple[IPv4Network, ...]) -> str:
    """The nftables rule of one opening. `sources` is not empty."""
    names = ", ".join(str(one.network_address if one.prefixlen == 32 else one) for one in sources)
    match = "ip protocol vrrp" if opening.protocol == "vrrp" else f"{opening.protocol} dport {opening.port}"
    why = opening.why.replace('"', "'")[:120]
    return f'ip saddr {{ {names} }} {match} accept comment "{why}"'
