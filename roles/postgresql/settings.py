"""What the postgresql role reads of a site file, and what it declares."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, StrictInt

from onprem_mlops.roles import ALL, Certificate, Database, Opening, Problem, RoleSettings, Secret
from onprem_mlops.site import Node, Site
from onprem_mlops.site.fields import Size

RESERVED_CONNECTIONS = 20
"""Connections that no consumer may take: for administrators, backups, and what looks after the server."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_TAKEN = frozenset({"postgres", "replicator", "template0", "template1", "public", "none", "user", "all", "replication"})
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
    connections: StrictInt = Field(
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
    archive_folder: str = Field(
        "",
        pattern=r"^(/[A-Za-z0-9._/-]+)?$",
        description="Folder on the node that `archive_command` writes to, such as a mounted share: postgres must be "
        "able to write in it, and not in the empty folder below the mount. The unit can write nowhere else.",
    )

    standby: bool = Field(
        False,
        description="Whether a second node of group `database` follows the first, to take over when that is lost. Off: "
        "it needs a node, and does not replace backups.",
    )
    primary: str | None = Field(
        None,
        description="The node that serves, where there is a standby. None: the first of the group. The role's README "
        "says how to switch.",
    )

    def hosts(self, site: Site) -> tuple[Node, ...]:
        """The node that serves, then the one that follows it if there is a standby."""
        nodes = site.in_group("database") or site.in_group("services")
        if not self.standby:
            return nodes[:1]
        return tuple(sorted(nodes[:2], key=lambda node: node.name != self.primary))

    def standby_of(self, site: Site) -> Node | None:
        """The node that follows; None if there is none."""
        return next(iter(self.hosts(site)[1:]), None)

    def name(self, site: Site) -> str:
        """The full name that clients connect to and that the certificate is for."""
        return f"postgresql.{site.domain}"

    def clients(self, site: Site, database: Database) -> tuple[Node, ...]:
        """The nodes from which a database's account may log in."""
        return site.in_group(*database.groups)

    def names(self, site: Site) -> Mapping[str, IPv4Address]:
        """`postgresql.<domain>`, at the node that serves."""
        return {self.name(site): host.address for host in self.hosts(site)[:1]}

    def secrets(self, site: Site) -> Iterable[Secret]:
        """With a standby, the password that it copies the databases with."""
        if self.standby:
            yield Secret("replication_password", why="the account with which a standby copies every database")

    def certificates(self, site: Site, node: Node) -> Iterable[Certificate]:
        """One server certificate on each node, good for the name that moves and for the node's own."""
        if node in self.hosts(site):
            yield Certificate("postgresql", dns=(self.name(site), site.full_name(node)), addresses=(node.address,))

    def openings(self, site: Site, node: Node) -> Iterable[Opening]:
        """The server, for the nodes of declared consumers, and for the controller, which looks at its certificate."""
        if node in self.hosts(site):
            groups = {"nodes" if group == ALL else group for _, one in site.databases for group in one.groups}
            if self.standby:
                groups.add("database")
            yield Opening(self.port, (*sorted(groups), "controller"), "databases of the platform's services, over TLS")

    def artifacts(self) -> Iterable[str]:
        """None of its own: the packages are among those that the mirror serves."""
        return ()

    def problems(self, site: Site) -> Iterable[str | Problem]:
        """Databases that PostgreSQL could not make, or not serve at once; a standby without a node."""
        yield from self._problems_of_standby(site)
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

    def _problems_of_standby(self, site: Site) -> Iterable[Problem]:
        nodes = [node.name for node in site.in_group("database")]
        if self.standby and len(nodes) != 2:
            yield Problem(f"a standby needs two nodes in group database, and there are {len(nodes)}", "standby")
        elif self.primary is not None and not self.standby:
            yield Problem("without a standby the first node of the group serves; leave it out", "primary")
        elif self.primary is not None and self.primary not in nodes:
            yield Problem(f"{self.primary} is not in group database; name one of {', '.join(nodes)}", "primary")
