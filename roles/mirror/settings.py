"""Where nodes get everything from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import ClassVar, Literal

from pydantic import Field

from onprem_mlops.roles import Certificate, Opening, Problem, RoleSettings
from onprem_mlops.site import MIRROR_PORT, Node, Site
from onprem_mlops.site.fields import MemoryLimit


class Settings(RoleSettings):
    """The site's own source of files, Debian packages and container images, over HTTPS."""

    groups: ClassVar[tuple[str, ...]] = ("services",)

    root: ClassVar[str] = "/srv/mirror"
    """Where the tree lies on the node; `current` in it is what is served."""
    port: ClassVar[int] = MIRROR_PORT
    registry_port: ClassVar[int] = 5000
    """Port of the registry on the node's loopback, behind nginx."""

    debian: tuple[Literal["bookworm", "trixie"], ...] = Field(
        ("bookworm",), min_length=1, description="Debian releases of the nodes, whose packages are served."
    )
    memory: MemoryLimit = Field(
        "512M",
        description="Memory that nginx and the registry may each use at most; both send files from the page cache.",
    )

    def host(self, site: Site) -> Node:
        """The node that serves the mirror."""
        return site.in_group("services")[0]

    def names(self, site: Site) -> Mapping[str, IPv4Address]:
        """`mirror.<domain>`."""
        return {site.mirror_name: self.host(site).address}

    def certificates(self, site: Site, node: Node) -> Iterable[Certificate]:
        """One server certificate, on the node that serves."""
        if node == self.host(site):
            yield Certificate("mirror", dns=(site.mirror_name,), addresses=(node.address,))

    def openings(self, site: Site, node: Node) -> Iterable[Opening]:
        """HTTPS for nodes, and for the controller, which verifies that it is served right."""
        if node == self.host(site):
            yield Opening(self.port, ("nodes", "controller"), "the mirror: files, packages, images")

    def artifacts(self) -> Iterable[str]:
        """The registry itself, and the packages that nodes install."""
        return ("registry", *(f"debs-{release}" for release in self.debian))

    def problems(self, site: Site) -> Iterable[Problem]:
        """A node whose release is known must find its packages."""
        names = {12: "bookworm", 13: "trixie"}
        for node in site.nodes:
            if node.release is not None and names[node.release] not in self.debian:
                yield Problem(
                    f"node {node.name} runs Debian {node.release}, whose packages the mirror does not serve; "
                    f"add {names[node.release]} to settings.mirror.debian",
                    "release",
                    node.name,
                )
