"""What a role declares about a site, without a node in sight: settings, secrets, certificates, openings.

The half of a role that acts on nodes (``deploy.py``) is the business of ``onprem_mlops.roles``, which is also
where roles import everything in here from.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from onprem_mlops.errors import RequestError
from onprem_mlops.paths import REPOSITORY

if TYPE_CHECKING:
    from onprem_mlops.site.model import Node, Site

ALL = "all"
"""The group every node is in. A role says so; a site file never does."""

AUTHORITY = "authority"
"""Under this name, in the place of a role, the secrets hold the key of the site's certificate authority."""

PORT_RANGE = re.compile(r"(\d{1,5})-(\d{1,5})")


@dataclass(frozen=True)
class Secret:
    """A secret that a role needs, generated once for the site.

    ``key32``: 32 random bytes in base64. ``password``: 24 letters and digits. ``token``: 32 hex digits.
    """

    name: str
    kind: Literal["key32", "password", "token"] = "password"
    why: str = ""
    """What it protects; shown when it cannot be rotated."""
    given: bool = False
    """Whether it has to be what somebody else says (a company's S3, a person): a fresh value alone opens nothing."""
    rotatable: bool = True
    """False if data depends on it (an encryption key): then a fresh value alone would lose that data."""


@dataclass(frozen=True)
class Certificate:
    """A leaf certificate of the site's authority that a role needs on one node."""

    name: str
    dns: tuple[str, ...] = ()
    addresses: tuple[IPv4Address, ...] = ()
    usage: Literal["server", "client", "both"] = "server"
    common_name: str = ""
    """Empty: the first DNS name, else the certificate's name."""
    organizations: tuple[str, ...] = ()
    days: int = 365
    """Life in days. A deploy renews it when a third is left."""


@dataclass(frozen=True)
class Opening:
    """A port that a role needs reachable on a node, and from where."""

    port: int | str | None
    """A port, a range (``"30000-32767"``), or None for a protocol without ports."""
    sources: tuple[str, ...]
    """Groups, or ``nodes``, ``pods``, ``controller``, or a network such as ``"192.0.2.0/24"``."""
    why: str
    protocol: Literal["tcp", "udp", "vrrp"] = "tcp"

    def __post_init__(self) -> None:
        if (self.port is None) != (self.protocol == "vrrp"):
            raise ValueError(f"opening for {self.why}: tcp and udp have a port, vrrp has none")
        if self.port is not None:
            low, high = self.ports
            if not 0 < low <= high < 65536:
                raise ValueError(f"opening for {self.why}: {self.port} is not a port or a range of ports")

    @property
    def ports(self) -> tuple[int, int]:
        """First and last port. ValueError for a protocol without ports."""
        if isinstance(self.port, int):
            return self.port, self.port
        match = PORT_RANGE.fullmatch(self.port or "")
        if match is None:
            raise ValueError(f"opening for {self.why}: {self.port} is not a port or a range of ports")
        return int(match[1]), int(match[2])


@dataclass(frozen=True)
class Database:
    """A PostgreSQL database that a role needs. An account of the same name owns it and can reach no other."""

    name: str
    groups: tuple[str, ...]
    """Groups of the nodes that its clients run on."""
    secret: str = "database_password"  # noqa: S105 - a name
    """Name of the declaring role's own secret that is the account's password."""
    connections: int = 20
    """Most connections that the account may hold at once."""


@dataclass(frozen=True)
class Bucket:
    """A bucket of the object store that a role needs, read and written by a user with that role's name (`_` as `-`)."""

    name: str
    secret: str = "storage_key"  # noqa: S105 - a name
    """Name of the declaring role's own secret that is the user's secret key; one for all of its buckets."""


@dataclass(frozen=True)
class Route:
    """A name below the site's domain at which the gateway serves a role's service, and where that listens."""

    name: str
    """First label, such as `git` for git.<domain>."""
    port: int
    """HTTPS port of the service itself on each of its nodes; its certificate must hold the node's full name."""
    nodes: tuple[str, ...]
    """Names of the nodes that serve it; requests go to any that is healthy."""
    health: str = "/"
    """Path that answers 200 while the service is able to work."""
    public_port: int = 443
    """Port at the gateway. Another one than 443 is passed through as plain TCP (such as Git over SSH)."""


@dataclass(frozen=True)
class Forge:
    """Git of the site itself, in which its own description can live."""

    url: str
    """What names of repositories are appended to: `https://git.<domain>/platform/`."""
    node: str
    """Name of the node that holds the credentials."""
    header: str
    """Path there of a file with the HTTP header that may push; it is read by root and never leaves this machine."""
    program: str
    """Repository for this program."""
    inventory: str
    """Repository for the site's folder."""


@dataclass(frozen=True)
class Problem:
    """Something a role finds wrong in the site file: "what is wrong; what would be right"."""

    message: str
    field: str = ""
    """Where: a dotted path in the role's own settings, or in the node's entry if ``node`` is given."""
    node: str = ""


class RoleSettings(BaseModel):
    """The part of ``site.yaml`` that one role reads, and what the role declares for a site."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    groups: ClassVar[tuple[str, ...]] = ()
    """Groups of nodes the role runs on (``("all",)`` for every node). While it is on, none may be empty."""
    optional_groups: ClassVar[tuple[str, ...]] = ()
    """Groups the role also runs on if they have nodes."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Roles without which this one cannot be on."""

    @classmethod
    def wanted(cls, nodes: Iterable[Node]) -> bool:
        """Whether a site with these nodes has the role though its site file names no roles."""
        return True

    def secrets(self, site: Site) -> Iterable[Secret]:
        """Secrets to generate once for the site."""
        return ()

    def certificates(self, site: Site, node: Node) -> Iterable[Certificate]:
        """Leaf certificates to issue for ``node``."""
        return ()

    def openings(self, site: Site, node: Node) -> Iterable[Opening]:
        """Ports to open on ``node``."""
        return ()

    def taints(self, site: Site, node: Node) -> Iterable[str]:
        """Kubernetes taints of ``node``, each `key=value:Effect`, beside those that the site file gives it."""
        return ()

    def names(self, site: Site) -> Mapping[str, IPv4Address | tuple[IPv4Address, ...]]:
        """Full names that every node must resolve, beside the nodes' own.

        Of several addresses, clients try one after the other.
        """
        return {}

    def databases(self, site: Site) -> Iterable[Database]:
        """Databases that the role needs of role ``postgresql``."""
        return ()

    def buckets(self, site: Site) -> Iterable[Bucket]:
        """Buckets that the role needs of role ``object_store``."""
        return ()

    def routes(self, site: Site) -> Iterable[Route]:
        """Names at which role ``gateway`` serves the role's service."""
        return ()

    def forge(self, site: Site) -> Forge | None:
        """Where `site push` puts this program and the site's folder, if the role serves Git."""
        return None

    def wheelhouses(self, site: Site) -> Iterable[str]:
        """Artifacts whose Python packages role ``gitea`` offers to everybody of the site: what people and jobs install.

        Their names must be among `artifacts`, too.
        """
        return ()

    def artifacts(self) -> Iterable[str]:
        """Names in the artifact catalogue that the role lays down."""
        return ()

    def problems(self, site: Site) -> Iterable[str | Problem]:
        """Own cross-checks of a site that is otherwise right."""
        return ()

    def notices(self, site: Site) -> Iterable[str]:
        """What people should know who run this role, though nothing is wrong: "what is so; what to do about it"."""
        return ()


def gateway_sources(site: Site) -> tuple[str, ...]:
    """Sources for the opening of a service that role ``gateway`` serves: its nodes, or everybody where it is off."""
    if not site.is_on("gateway"):
        return "nodes", "pods"
    gateway: Any = site.settings("gateway")
    return tuple(f"{node.address}/32" for node in gateway.hosts(site))


@dataclass(frozen=True)
class Role:
    """A role's folder and its model of settings."""

    name: str
    folder: Path
    package: str
    """The import name of the folder: its modules are ``<package>.settings``, ``<package>.deploy``, …"""
    settings: type[RoleSettings]

    @property
    def groups(self) -> tuple[str, ...]:
        """All groups the role may run on."""
        return self.settings.groups + self.settings.optional_groups

    @property
    def summary(self) -> str:
        """What the role lays down, in one sentence."""
        return (self.settings.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")


def find_roles(*roots: Path) -> dict[str, Role]:
    """The roles in the folders ``roots`` (default: the repository's ``roles/``), by name, sorted.

    A later root may not redefine an earlier root's role: RequestError. Without ``settings.py`` it is no role.
    """
    roles: dict[str, Role] = {}
    for root in roots or (REPOSITORY / "roles",):
        for settings_file in sorted(root.glob("*/settings.py")):
            role = _load_role(root, settings_file.parent.name)
            if role.name in roles:
                raise RequestError(
                    f"role {role.name} is defined twice: {roles[role.name].folder} and {role.folder}",
                    "Give the site's own role another name.",
                )
            roles[role.name] = role
    return dict(sorted(roles.items()))


def _load_role(root: Path, name: str) -> Role:
    package = f"{_root_package(root)}.{name}"
    module = importlib.import_module(f"{package}.settings")
    settings = getattr(module, "Settings", None)
    if not (isinstance(settings, type) and issubclass(settings, RoleSettings)):
        raise RequestError(
            f"{root / name / 'settings.py'} has no class Settings(RoleSettings)", "See docs/architecture.md."
        )
    return Role(name, root / name, package, settings)


def _root_package(root: Path) -> str:
    """Make ``root`` importable as a package of its own, so that roles of several roots never mix."""
    root = root.resolve()
    own = root == (REPOSITORY / "roles").resolve()
    name = "roles" if own else "roles_" + hashlib.sha256(str(root).encode()).hexdigest()[:8]
    if name not in sys.modules:
        package = types.ModuleType(name, "Roles, each a folder of one component.")
        package.__path__ = [str(root)]
        sys.modules[name] = package
    return name
