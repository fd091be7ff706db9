"""What the network role reads of a site file, and what it declares."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import ClassVar

from pydantic import Field, StrictInt

from onprem_mlops.roles import Opening, RoleSettings
from onprem_mlops.site import Node, Site

VXLAN_PORT = 4789


class Settings(RoleSettings):
    """The pods' network: Calico with VXLAN and NetworkPolicy, and what pods get answered by the cluster's DNS."""

    groups: ClassVar[tuple[str, ...]] = ("control_plane", "worker")
    requires: ClassVar[tuple[str, ...]] = ("kubernetes",)

    mtu: StrictInt = Field(
        default=0,
        ge=0,
        le=9000,
        description="MTU of pods. 0: Calico takes the nodes' and leaves room for VXLAN.",
    )
    upstream_resolvers: tuple[IPv4Address, ...] = Field(
        default=(),
        description="DNS servers that pods' questions for names outside the cluster and the site go to. None: such "
        "names do not exist; the platform needs no internet, and nothing leaks into it.",
    )
    ready_seconds: StrictInt = Field(
        default=300, ge=30, description="How long the first start of the network may take on slow disks."
    )

    def openings(self, site: Site, node: Node) -> Iterable[Opening]:
        """VXLAN between nodes of the cluster; Calico's typha and BGP are not used."""
        if set(self.groups) & set(node.groups):
            yield Opening(VXLAN_PORT, self.groups, "pods' packets between nodes (VXLAN)", "udp")

    def artifacts(self) -> Iterable[str]:
        """Names in the artifact catalogue that the role lays down."""
        images = ("image-calico-node", "image-calico-cni", "image-calico-kube-controllers")
        # netcheck is what verification runs in pods; a cluster that cannot pull it cannot be verified.
        return ("calico-manifest", *images, "image-netcheck")
