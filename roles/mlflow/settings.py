"""What the mlflow role reads of a site file, and what it declares."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StringConstraints

from onprem_mlops.roles import (
    Bucket,
    Certificate,
    Database,
    Opening,
    Problem,
    RoleSettings,
    Route,
    Secret,
    gateway_sources,
)
from onprem_mlops.site import Node, Site
from onprem_mlops.site.fields import MemoryLimit

DEBIAN = 12
"""The Debian release whose Python the wheels are for."""

ADMINISTRATOR = "admin"
"""The account that the role itself works with; its password is the secret `admin_password`."""

AccountName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9._-]{0,62}$")]
TeamName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,61}[a-z0-9]$")]


class User(BaseModel):
    """One person or program that tracks experiments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teams: tuple[TeamName, ...] = Field(
        default=(), description="Teams whose workspaces the user works in, beside experiments of their own."
    )
    administrator: bool = Field(
        default=False, description="Sees and changes everything, of all teams. People who need this are few."
    )


class Settings(RoleSettings):
    """Experiment tracking and model registry (MLflow); clients need its address, a login and the site's authority."""

    groups: ClassVar[tuple[str, ...]] = ("services",)
    optional_groups: ClassVar[tuple[str, ...]] = ("tracking",)
    requires: ClassVar[tuple[str, ...]] = ("node", "mirror", "postgresql", "object_store")

    port: ClassVar[int] = 5000

    users: Mapping[AccountName, User] = Field(
        default_factory=dict,
        description="Who may log in, by account name. Each gets a password, the secret `user_<name>`; who is taken "
        "off the list can no longer log in, and what they made stays.",
    )
    workers: StrictInt = Field(
        default=1,
        ge=1,
        le=16,
        description="Processes that answer requests, on each node. One holds 250 MB and answers some dozen requests "
        "a second; more are worth their memory when many trainings log at once.",
    )
    memory: MemoryLimit = Field(
        default="1536M",
        description="Memory that the service may use at most, page cache of artifacts on their way included.",
    )
    deleted_runs_kept_days: StrictInt = Field(
        default=30,
        ge=1,
        description="Days after which a deleted run goes for good, with its artifacts. Until then it can be restored.",
    )

    def hosts(self, site: Site) -> tuple[Node, ...]:
        """The nodes that serve; with several, each serves all."""
        return site.in_group("tracking") or site.in_group("services")[:1]

    def name(self, site: Site) -> str:
        """The full name under which the gateway serves it."""
        return f"mlflow.{site.domain}"

    def internal_endpoint(self, site: Site, node: Node) -> str:
        """Where one of its nodes answers."""
        return f"https://{site.full_name(node)}:{self.port}"

    def endpoint(self, site: Site) -> str:
        """The address that people give their clients: the gateway's if there is one, else the first node's."""
        if site.is_on("gateway"):
            return f"https://{self.name(site)}"
        return self.internal_endpoint(site, self.hosts(site)[0])

    @property
    def teams(self) -> tuple[str, ...]:
        """All teams that a user is in, sorted."""
        return tuple(sorted({team for user in self.users.values() for team in user.teams}))

    def secrets(self, site: Site) -> Iterable[Secret]:
        """Its accounts at the database and the object store, and a password for each user."""
        storage: Any = site.settings("object_store")
        yield Secret("database_password", why="tracking's database account")
        yield Secret("auth_database_password", why="the database account of users and permissions")
        yield Secret("storage_key", why="artifacts in the object store", given=storage.given)
        yield Secret("session_key", kind="token", why="signs the web interface's forms")
        yield Secret("admin_password", why=f"the account {ADMINISTRATOR}")
        for user in self.users:
            yield Secret(f"user_{user}", why=f"the account {user}")

    def databases(self, site: Site) -> Iterable[Database]:
        """One for experiments and models, one for users and permissions."""
        groups = ("tracking",) if site.in_group("tracking") else ("services",)
        # MLflow holds at most 15 a worker: SQLAlchemy's pool of 5 and 10 more.
        connections = 15 * self.workers * len(self.hosts(site)) + 10
        yield Database("mlflow", groups, connections=connections)
        yield Database("mlflow_auth", groups, "auth_database_password", connections)

    def buckets(self, site: Site) -> Iterable[Bucket]:
        """The one that holds artifacts."""
        yield Bucket("mlflow")

    def routes(self, site: Site) -> Iterable[Route]:
        """`mlflow.<domain>`."""
        yield Route("mlflow", self.port, tuple(node.name for node in self.hosts(site)), health="/health")

    def certificates(self, site: Site, node: Node) -> Iterable[Certificate]:
        """One server certificate on each node that serves."""
        if node in self.hosts(site):
            yield Certificate("mlflow", dns=(site.full_name(node), self.name(site)), addresses=(node.address,))

    def openings(self, site: Site, node: Node) -> Iterable[Opening]:
        """HTTPS for the gateway; for everybody on the site's networks if there is none."""
        if node not in self.hosts(site):
            return
        yield Opening(self.port, (*gateway_sources(site), "controller"), "MLflow")

    def wheelhouses(self, site: Site) -> Iterable[str]:
        """What people and jobs log with."""
        yield "mlflow-client"

    def artifacts(self) -> Iterable[str]:
        """The server's wheels, what verification is a client with, and what installs both."""
        return ("mlflow", "mlflow-client", "uv")

    def problems(self, site: Site) -> Iterable[Problem]:
        """Users that cannot be, and nodes with another Python."""
        if ADMINISTRATOR in self.users:
            yield Problem(f"{ADMINISTRATOR} is the role's own account; give this user another name", "users")
        if "default" in self.teams:
            yield Problem("default is where users work who are in no team; give this team another name", "users")
        for name in self.users:
            if re.search(r"[._-]{2}", name):
                yield Problem(f"user {name}: no two of `.`, `_` and `-` beside each other", "users")
        database = site.settings("postgresql").hosts(site)[0] if site.is_on("postgresql") else None  # type: ignore[attr-defined]
        if database is not None and database.release not in (None, DEBIAN):
            yield Problem(
                f"PostgreSQL's node {database.name} runs Debian {database.release}, and the pg_dump of Debian {DEBIAN} "
                "cannot read it: there would be no backup before a schema changes; give group `database` to a node "
                f"that runs Debian {DEBIAN}",
                "release",
                database.name,
            )
        for node in self.hosts(site):
            if node.release not in (None, DEBIAN):
                yield Problem(
                    f"node {node.name} runs Debian {node.release}, and MLflow's wheels are for the Python of Debian "
                    f"{DEBIAN}; give group `tracking` to nodes that run it",
                    "release",
                    node.name,
                )
