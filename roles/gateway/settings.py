"""The site's front door for services beside the cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import ClassVar

from pydantic import Field, StrictInt

from onprem_mlops.roles import Certificate, Opening, Problem, RoleSettings, Route
from onprem_mlops.site import Node, Site
from onprem_mlops.site.fields import MemoryLimit

HTTPS = 443
"""Port of every route that is HTTP; those on other ports are passed through as TCP."""


class Settings(RoleSettings):
    """One address and one certificate for the names of all services beside the cluster (HAProxy)."""

    groups: ClassVar[tuple[str, ...]] = ("services",)
    optional_groups: ClassVar[tuple[str, ...]] = ("gateway",)
    requires: ClassVar[tuple[str, ...]] = ("node", "mirror")

    metrics_port: ClassVar[int] = 8405
    """Port on the node's loopback that answers `/healthz` and `/metrics`."""

    clients: tuple[IPv4Network, ...] = Field(
        (),
        description="Networks that may use the services, beside nodes, pods and the controller, such as the company's "
        "offices. None: a platform opens nothing that nobody asked for.",
    )
    requests_per_second: StrictInt = Field(
        500,
        ge=1,
        le=100_000,
        description="Requests that one client address may make, on average over ten seconds; more are answered with "
        "429. All pods of a node share its address: the default bounds a runaway client and lets them work.",
    )
    connections: StrictInt = Field(
        4096,
        ge=64,
        le=20_000,
        description="Connections that may be open at once; further ones wait. Each costs up to 80 kB with TLS.",
    )
    connections_per_client: StrictInt = Field(
        512,
        ge=8,
        le=20_000,
        description="Connections that one client address may hold, so that none takes them all.",
    )
    largest_body_gib: StrictInt = Field(
        20,
        ge=1,
        description="Largest request, in GiB, whose length the client says; larger ones are answered with 413. The "
        "default is above S3's 5 GiB for one part and above image layers with CUDA in them.",
    )
    quiet_seconds: StrictInt = Field(
        600,
        ge=30,
        description="How long a service or a client may say nothing before its connection ends. Not the length of a "
        "transfer, which may go on for hours; the default lets a service think about a large upload.",
    )
    http2: bool = Field(
        False,
        description="Whether HTTP/2 is offered. Off: libcurl 7.88, which is Debian 12's and its Git's, damages uploads "
        "of tens of megabytes over HTTP/2 or hangs in them (seen in pushes through the gateway, and past it).",
    )
    memory: MemoryLimit = Field(
        "512M",
        description="Memory it may use at most: all connections with TLS, and old ones that a reload leaves to end.",
    )

    def hosts(self, site: Site) -> tuple[Node, ...]:
        """Nodes that it runs on; names lead to the first."""
        return site.in_group("gateway") or site.in_group("services")[:1]

    def web(self, site: Site) -> tuple[Route, ...]:
        """Routes that are HTTPS."""
        return tuple(route for route in site.routes if route.public_port == HTTPS)

    def passed_through(self, site: Site) -> tuple[Route, ...]:
        """Routes that are TCP, each on a port of its own."""
        return tuple(route for route in site.routes if route.public_port != HTTPS)

    def names(self, site: Site) -> Mapping[str, IPv4Address]:
        """The name of each route, at the first gateway."""
        return {f"{route.name}.{site.domain}": self.hosts(site)[0].address for route in site.routes}

    def certificates(self, site: Site, node: Node) -> Iterable[Certificate]:
        """One server certificate with all names, on each gateway."""
        names = tuple(sorted({f"{route.name}.{site.domain}" for route in self.web(site)}))
        if node in self.hosts(site) and names:
            yield Certificate("gateway", dns=names, addresses=(node.address,))

    def openings(self, site: Site, node: Node) -> Iterable[Opening]:
        """HTTPS and what is passed through, for everybody who uses the services."""
        if node not in self.hosts(site):
            return
        sources = ("nodes", "pods", "controller", *(str(network) for network in self.clients))
        yield Opening(HTTPS, sources, "the gateway: services by name, HTTPS")
        for route in self.passed_through(site):
            yield Opening(route.public_port, sources, f"the gateway: {route.name}.{site.domain}, passed through")

    def problems(self, site: Site) -> Iterable[Problem]:
        """Names and ports that two would have, and a door that leads nowhere."""
        if not self.web(site):
            yield Problem(
                "no role that is on has a service for the gateway; take gateway off `roles:`, or put gitea, mlflow or "
                "object_store on"
            )
        seen: set[tuple[str, int] | int] = set()
        for route in site.routes:
            key = (route.name, HTTPS) if route.public_port == HTTPS else route.public_port
            if key in seen:
                yield Problem(f"two routes want {route.name}.{site.domain} on port {route.public_port}")
            seen.add(key)
        yield from self._ports_taken(site)

    def _ports_taken(self, site: Site) -> Iterable[Problem]:
        """A service on a gateway's own node cannot listen where the gateway does."""
        public = {route.public_port for route in site.routes}
        gateways = {node.name for node in self.hosts(site)}
        for route in site.routes:
            if route.port in public and gateways & set(route.nodes):
                yield Problem(
                    f"the service behind {route.name}.{site.domain} listens on port {route.port}, which is the "
                    f"gateway's on {', '.join(sorted(gateways & set(route.nodes)))}; give one of them another port"
                )
