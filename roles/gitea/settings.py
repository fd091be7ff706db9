"""What the gitea role reads of a site file, and what it declares."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, StrictInt, StringConstraints

from onprem_mlops.roles import (
    Bucket,
    Certificate,
    Database,
    Forge,
    Opening,
    Problem,
    RoleSettings,
    Route,
    Secret,
    gateway_sources,
)
from onprem_mlops.site import Node, Site
from onprem_mlops.site.fields import Size

AUTOMATION = "onprem-mlops"
"""The account that deploys act with: an administrator whose password nobody knows, by a token on its node only."""

_RESERVED = frozenset(
    {
        "admin",
        "api",
        "assets",
        "attachments",
        "avatars",
        "captcha",
        "explore",
        "ghost",
        "gitea-actions",
        "issues",
        "login",
        "metrics",
        "milestones",
        "new",
        "notifications",
        "org",
        "pulls",
        "raw",
        "repo",
        "repo-avatars",
        "search",
        "stars",
        "template",
        "user",
        "v2",
    }
)
"""Names that Gitea keeps for pages of its own."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]+([-_.][A-Za-z0-9]+)*$", max_length=40)]
Permission = Literal["read", "write", "admin"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Person(_Strict):
    """Somebody with an account. The first password is in the site's secrets; it must be changed at first login."""

    email: str = Field(pattern=r"^[^@\s]+@[^@\s]+$", description="Address that notifications go to.")
    full_name: str = Field("", description="Shown beside the name.")
    admin: bool = Field(False, description="Whether the person administers all of Gitea.")
    active: bool = Field(True, description="Off: may not log in; what the person wrote stays.")
    ssh_keys: tuple[Annotated[str, StringConstraints(pattern=r"^(ssh-ed25519|ssh-rsa|ecdsa-\S+|sk-\S+) \S+$")], ...] = (
        Field((), description="Public keys for Git over SSH, type and key without a comment. Others may be added.")
    )


class Team(_Strict):
    """People with the same rights in an organisation."""

    permission: Permission = Field("write", description="What the team may do with the organisation's repositories.")
    members: tuple[Name, ...] = Field((), description="Exactly these people are in it.")
    creates_repositories: bool = Field(False, description="Whether its members may make repositories.")


class Organisation(_Strict):
    """An owner of repositories and packages, with teams."""

    description: str = Field("", max_length=255, description="Shown on its page.")
    visibility: Literal["public", "limited", "private"] = Field(
        "private", description="Who sees that it exists: everybody, those who are logged in, or its members."
    )
    teams: Mapping[Name, Team] = Field(default_factory=dict, description="Its teams, beside Gitea's own `Owners`.")


class Mail(_Strict):
    """The site's relay for mail."""

    host: str = Field(pattern=r"^[A-Za-z0-9.-]+$", description="Name of the relay, which its certificate is for.")
    port: StrictInt = Field(587, ge=1, le=65535, description="Its port.")
    protocol: Literal["smtp+starttls", "smtps"] = Field("smtp+starttls", description="How the connection gets TLS.")
    sender: str = Field(pattern=r"^[^@\s]+@[^@\s]+$", description="Address that mail comes from.")
    user: str = Field(
        "", pattern=r"^\S*$", description="Account at the relay. Its password is the secret `mail_password`."
    )


class Settings(RoleSettings):
    """Gitea: Git over HTTPS and SSH, pull requests, LFS, and registries for containers and Python packages."""

    groups: ClassVar[tuple[str, ...]] = ("services",)
    optional_groups: ClassVar[tuple[str, ...]] = ("git",)
    requires: ClassVar[tuple[str, ...]] = ("node", "mirror", "postgresql", "object_store")

    port: ClassVar[int] = 3000
    ssh_port: ClassVar[int] = 2222
    """Where people find Git over SSH; through the gateway where there is one."""
    ssh_user: ClassVar[str] = "git"
    health: ClassVar[str] = "/api/healthz"
    account: ClassVar[str] = "gitea"
    """The system account, and the database, and the bucket."""
    data: ClassVar[str] = "/var/lib/gitea"
    configuration: ClassVar[str] = "/run/gitea/app.ini"
    """What Gitea's own commands want as --config; put together when the service starts."""
    token_header: ClassVar[str] = "/etc/gitea/token"  # noqa: S105 - a path
    """On the node: the header with which `curl --header @FILE` is the account that deploys act with."""
    platform: ClassVar[str] = "platform"
    """The organisation that holds the platform's own description."""
    shared: ClassVar[str] = "shared"
    """The organisation whose packages everybody may install."""

    organisations: Mapping[Name, Organisation] = Field(
        default_factory=dict,
        description="Organisations and their teams. What is not named here stays as people made it; `platform` "
        "and `shared` are always there.",
    )
    people: Mapping[Name, Person] = Field(
        default_factory=dict,
        description="Accounts. Somebody taken out of the list keeps the account; say `active: false` to lock it.",
    )
    two_factor: Literal["enforced", "optional"] = Field(
        "enforced",
        description="`enforced`: without a second factor nobody gets at a repository in the web interface or through "
        "the API (Git itself needs a token or a key anyway). The default, since an administrator's password is worth "
        "as much as all that the platform runs.",
    )
    approvals: StrictInt = Field(
        1,
        ge=0,
        le=10,
        description="Reviews that a change of the platform's own repositories needs before it is merged.",
    )
    mail: Mail | None = Field(None, description="The site's mail relay. None: no notifications by mail.")
    packages_per_owner: Size = Field(
        ByteSize(50 << 30),
        description="Quota: container images, Python packages and others of one person or organisation together.",
    )
    lfs_file: Size = Field(ByteSize(10 << 30), description="Largest file in LFS.")
    attachment: Size = Field(
        ByteSize(256 << 20),
        description="Largest file attached to an issue or a release.",
    )
    repositories_per_person: StrictInt = Field(
        50,
        ge=-1,
        description="Quota: repositories that a person may own; -1 for no limit. Teams have organisations.",
    )
    memory: Size = Field(
        ByteSize(2 << 30),
        ge=1 << 30,
        description="Memory that Gitea and its Git processes may use at most. It idles at 200 MB; packing a large "
        "repository takes the rest, and so does each file on its way to the object store whose size Gitea does not "
        "know before: half a gigabyte.",
    )

    # --- where it runs

    def hosts(self, site: Site) -> tuple[Node, ...]:
        """The node that serves."""
        return site.in_group(self._group(site))[:1]

    def _group(self, site: Site) -> str:
        return "git" if site.in_group("git") else "services"

    def name(self, site: Site) -> str:
        """The name that people use."""
        return f"git.{site.domain}"

    def registry(self, site: Site) -> str:
        """The name in references of container images."""
        return f"registry.{site.domain}"

    def endpoint(self, site: Site) -> str:
        """Address of the service on its own node."""
        return f"https://{site.full_name(self.hosts(site)[0])}:{self.port}"

    def root_url(self, site: Site) -> str:
        """The address that people see: through the gateway where there is one."""
        return f"https://{self.name(site)}/" if site.is_on("gateway") else f"https://{self.name(site)}:{self.port}/"

    def ssh_listens(self, site: Site) -> int:
        """Port of Git over SSH on the service's own node: the gateway may be on the same one."""
        return 2022 if site.is_on("gateway") else self.ssh_port

    def index(self, site: Site, owner: str) -> str:
        """The address that pip wants for the Python packages of an organisation or a person."""
        return f"{self.root_url(site)}api/packages/{owner}/pypi/simple"

    # --- what it declares

    def databases(self, site: Site) -> Iterable[Database]:
        """One, for everything but repositories and files."""
        yield Database(self.account, groups=(self._group(site),), connections=40)

    def buckets(self, site: Site) -> Iterable[Bucket]:
        """One, for LFS, packages, attachments and pictures."""
        yield Bucket(self.account)

    def routes(self, site: Site) -> Iterable[Route]:
        """The web interface and Git, the container registry, and Git over SSH."""
        nodes = tuple(node.name for node in self.hosts(site))
        yield Route("git", self.port, nodes, self.health)
        yield Route("registry", self.port, nodes, self.health)
        yield Route("git", self.ssh_listens(site), nodes, public_port=self.ssh_port)

    def forge(self, site: Site) -> Forge | None:
        """Organisation `platform`, for this program and the site's folder."""
        url = f"{self.root_url(site)}{self.platform}/"
        node = self.hosts(site)[0].name
        return Forge(url, node, self.token_header, *self.repositories(site))

    def repositories(self, site: Site) -> tuple[str, str]:
        """The platform's own repositories: of this program, and of the site's folder."""
        return "onprem-mlops", f"site-{site.name}"

    def names(self, site: Site) -> Mapping[str, IPv4Address]:
        """The names that people use, unless the gateway answers at them."""
        if site.is_on("gateway"):
            return {}
        return {name: host.address for host in self.hosts(site) for name in (self.name(site), self.registry(site))}

    def certificates(self, site: Site, node: Node) -> Iterable[Certificate]:
        """One server certificate, on the node that serves."""
        if node in self.hosts(site):
            names = (site.full_name(node), self.name(site), self.registry(site))
            yield Certificate("gitea", dns=names, addresses=(node.address,))

    def openings(self, site: Site, node: Node) -> Iterable[Opening]:
        """HTTPS and SSH: for the gateway alone where there is one, and for verification."""
        if node in self.hosts(site):
            who = (*gateway_sources(site), "controller")
            yield Opening(self.port, who, "Gitea: web interface, Git over HTTPS, registries")
            yield Opening(self.ssh_listens(site), who, "Git over SSH")

    def secrets(self, site: Site) -> Iterable[Secret]:
        """Its keys, the passwords of its accounts elsewhere, and the first passwords of people."""
        storage: Any = site.settings("object_store")
        yield Secret("database_password")
        yield Secret("storage_key", given=storage.given)
        yield Secret(
            "secret_key",
            "key32",
            "encrypts second factors and other secrets in the database; with another key they cannot be read",
            rotatable=False,
        )
        yield Secret("internal_token", "key32")
        yield Secret("lfs_key", "key32")
        yield Secret("session_key", "key32")
        yield Secret("ssh_host_key", "key32")
        yield Secret("metrics_token", "token")
        if self.mail is not None and self.mail.user:
            yield Secret("mail_password")
        for name in self.people:
            yield Secret(f"first_password_{name}", why="a person's first password; changed at first login", given=True)

    def artifacts(self) -> Iterable[str]:
        """The program, and the files of its web interface."""
        return ("gitea", "gitea-assets")

    def problems(self, site: Site) -> Iterable[str | Problem]:
        """Names that Gitea would refuse, or that are given twice, and members without an account."""
        taken: dict[str, str] = {AUTOMATION: ""}
        for kind, names in (("organisations", self.organisations), ("people", self.people)):
            for name in names:
                field = f"{kind}.{name}"
                if name.lower() in _RESERVED or re.search(r"\.(keys|gpg|rss|atom|png)$", name.lower()):
                    yield Problem(f'Gitea keeps the name "{name}" for itself; choose another', field)
                elif name.lower() in taken:
                    yield Problem(f'"{name}" is taken; people and organisations share one list of names', field)
                taken[name.lower()] = field
        for name in self.people.keys() & {self.platform, self.shared}:
            yield Problem(f'"{name}" is an organisation of the platform; choose another name', f"people.{name}")
        yield from self._team_problems()

    def _team_problems(self) -> Iterable[Problem]:
        for owner, organisation in self.organisations.items():
            for team, wanted in organisation.teams.items():
                field = f"organisations.{owner}.teams.{team}"
                if team.lower() == "owners":
                    yield Problem("every organisation has its team Owners already; name another one", field)
                for member in wanted.members:
                    if member not in self.people:
                        yield Problem(f'"{member}" has no account; add it to people', f"{field}.members")
