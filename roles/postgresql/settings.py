"""What the postgresql role reads of a site file, and what it declares."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from onprem_mlops.roles import ALL, Certificate, Database, Opening, Problem, RoleSettings
from onprem_mlops.site import Node, Site
from onprem_mlops.site.fields import Size

RESERVED_CONNECTIONS = 20
"""Connections that no consumer may take: for administrators, backups, and what looks after the server."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_TAKEN = frozenset({"postgres", "template0", "template1", "public", "none", "user", "all", "replication"})
"""Names that PostgreSQL, or its list of who may log in, gives another meaning."""


def _enough(size: int | None) -> int | None:
    if size is not None and size < 512 << 20:
        raise ValueError(f"{size} bytes is too little for a database server; write a size with its unit, such as 2GiB")
    return size


class Settings(RoleSettings):
    """PostgreSQL for the platform's services: one database and one account each, over TLS only."""

    groups: ClassVar[tuple[str, ...]] = ("services",)
    optional_groups: ClassVar[tuple[str, ...]] = ("database",)
    requires: ClassVar[tuple[str, ...]] = ("node", "mirror")

    port: ClassVar[int] = 5432
    majors: ClassVar[Mapping[str, int]] = {"bookworm": 15, "trixie": 17}
    """The major version that a Debian release has, by the release's code name."""

    memory: Annotated[Size | None, AfterValidator(_enough)] = Field(
        None,
        description="Memory that the server may use, its part of the page cache included. None: a quarter of the "
        "node's, since other services run beside it. A node that is only a database's may give it most of its own.",
    )
    connections: int = Field(
        200,
        ge=50,
        le=2000,
        description="Most connections at once. Each is a process, and another number is a restart: the default has "
        "room for more services than the platform has.",
    )
    archive_command: str = Field(
        "",
        pattern=r"^[^'\n]*$",
        description="Command that copies a segment of the write-ahead log (%p) to where backups are, under its name "
        "(%f). Empty: nothing is archived, and archive_mode is off: with it on and no command that works, the server "
        "keeps every segment until its disk is full.",
    )

    def hosts(self, site: Site) -> tuple[Node, ...]:
        """The node that serves."""
        return (site.in_group("database") or site.in_group("services"))[:1]

    def name(self, site: Site) -> str:
        """The full name that clients connect to and that the certificate is for."""
        return f"postgresql.{site.domain}"

    def clients(self, site: Site, database: Database) -> tuple[Node, ...]:
        """The nodes from which a database's account may log in."""
        return site.in_group(*database.groups)

    def names(self, site: Site) -> Mapping[str, IPv4Address]:
        """`postgresql.<domain>`."""
        return {self.name(site): host.address for host in self.hosts(site)}

    def certificates(self, site: Site, node: Node) -> Iterable[Certificate]:
        """One server certificate, on the node that serves."""
        if node in self.hosts(site):
            yield Certificate("postgresql", dns=(self.name(site), site.full_name(node)), addresses=(node.address,))

    def openings(self, site: Site, node: Node) -> Iterable[Opening]:
        """The server, for the nodes of declared consumers, and for the controller, which looks at its certificate."""
        if node in self.hosts(site):
            groups = {"nodes" if group == ALL else group for _, one in site.databases for group in one.groups}
            yield Opening(self.port, (*sorted(groups), "controller"), "databases of the platform's services, over TLS")

    def artifacts(self) -> Iterable[str]:
        """None of its own: the packages are among those that the mirror serves."""
        return ()

    def problems(self, site: Site) -> Iterable[str | Problem]:
        """Databases that PostgreSQL could not make, or not serve at once."""
        owners: dict[str, str] = {}
        for role, database in site.databases:
            if not _NAME.fullmatch(database.name) or database.name in _TAKEN:
                yield f'role {role} asks for a database "{database.name}"; use lower-case letters, digits and _'
            elif database.name in owners:
                yield f"roles {owners[database.name]} and {role} both ask for a database {database.name}; rename one"
            owners.setdefault(database.name, role)
        wanted = sum(database.connections for _, database in site.databases)
        if wanted > self.connections - RESERVED_CONNECTIONS:
            yield Problem(
                f"accounts may hold {wanted} connections together, and {RESERVED_CONNECTIONS} are kept for "
                f"administration; allow at least {wanted + RESERVED_CONNECTIONS}",
                "connections",
            )
