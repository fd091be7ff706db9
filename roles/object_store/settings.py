"""Where the platform and its teams keep objects: data sets, models, artifacts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from onprem_mlops.roles import Certificate, Opening, Problem, RoleSettings, Route, Secret, gateway_sources
from onprem_mlops.site import Node, Site
from onprem_mlops.site.fields import MemoryLimit, Size

BucketName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$")]
UserName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{2,30}$")]
FolderPath = Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._-]+)+$")]

VERIFIER, STRANGER, METRICS = "verify", "verify-stranger", "metrics"
"""Users beside the site's: for checks one that may do anything to buckets `verify-…` and one that may do nothing; one
that may read metrics and nothing else."""
ADMINISTRATOR = "onprem-admin"
"""Who may do everything in the object store; only its own nodes hold the key."""
RESERVED = "verify-"
"""What the names of the checks' buckets begin with."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class DataClass(_Strict):
    """How long the objects of a bucket are kept."""

    versioning: bool = Field(default=True, description="Keep what is overwritten or deleted.")
    expire_days: StrictInt | None = Field(
        default=None, ge=1, description="Days after which an object goes. None: never."
    )
    expire_old_versions_days: StrictInt | None = Field(
        default=30,
        ge=1,
        description="Days after which an overwritten or deleted version goes. None: never.",
    )
    lock_days: StrictInt | None = Field(
        default=None,
        ge=1,
        description="Days in which nobody but the administrator can remove a version. None: no lock. A bucket gets "
        "its lock when it is made, never later.",
    )


def _classes() -> dict[str, DataClass]:
    return {
        "working": DataClass(),
        "temporary": DataClass(versioning=False, expire_days=30, expire_old_versions_days=None),
        "record": DataClass(expire_old_versions_days=None, lock_days=365),
        "plain": DataClass(versioning=False, expire_old_versions_days=None),
    }


class Bucket(_Strict):
    """One bucket."""

    data_class: str = Field(default="working", description="Which of `classes` says how long its objects are kept.")
    quota: Size | None = Field(default=None, description="Most that it may hold, such as 500G. None: the drives' room.")


class User(_Strict):
    """A service or a team, with its own access key."""

    read: tuple[BucketName, ...] = Field(default=(), description="Buckets whose objects it may list and read.")
    write: tuple[BucketName, ...] = Field(default=(), description="Buckets whose objects it may also write and delete.")


class Settings(RoleSettings):
    """Object storage that speaks S3, for the platform and its teams, with a user of its own for each."""

    groups: ClassVar[tuple[str, ...]] = ("services",)
    optional_groups: ClassVar[tuple[str, ...]] = ("storage",)
    requires: ClassVar[tuple[str, ...]] = ("node", "mirror")

    port: ClassVar[int] = 9000

    engine: Literal["minio", "external"] = Field(
        default="minio",
        description="`minio`: laid down here. Its community edition has not been maintained since February 2026: keep "
        "it behind the firewall and plan its successor. `external`: a company's own S3, see `url`.",
    )
    url: str | None = Field(
        default=None,
        pattern=r"^https://[^/]+$",
        description="Where an external S3 answers, such as https://s3.example.com.",
    )
    authority: str | None = Field(
        default=None,
        pattern=r"^\s*-----BEGIN CERTIFICATE-----",
        description="Certificate (PEM) of the authority that an external S3's own is signed by. None: a public one.",
    )
    drives: tuple[FolderPath, ...] = Field(
        default=("/var/lib/onprem-minio",),
        min_length=1,
        description="Folders that objects are kept in, each the mount point of a drive of its own; the same on every "
        "node of group `storage` (or, without one, on the first of `services`). One for a start; four or more drives "
        "in all are erasure-coded, and some may fail. Drives cannot be added to those that hold data.",
    )
    drives_on_system_disk: bool = Field(
        default=False,
        description="Let several drives be folders of the disk that the system is on. Erasure coding then protects "
        "from nothing; for trying it out.",
    )
    classes: Mapping[str, DataClass] = Field(
        default_factory=_classes,
        description="How long objects are kept, by data class. `working`: versions are kept for 30 days. `temporary`: "
        "objects go after 30 days. `record`: cannot be removed for a year. `plain`: no versions, nothing expires.",
    )
    # Not called what it is in the file: RoleSettings.buckets are those that a role asks for.
    named_buckets: Mapping[BucketName, Bucket] = Field(
        default_factory=dict, alias="buckets", description="Buckets by name, beside those that roles ask for."
    )
    users: Mapping[UserName, User] = Field(
        default_factory=dict, description="Teams and services of the company by access key; each has its own secret."
    )
    memory: MemoryLimit = Field(default="2G", description="Memory that the service may use at most on a node.")

    def hosts(self, site: Site) -> tuple[Node, ...]:
        """The nodes that keep objects; none for an external S3."""
        if self.engine == "external":
            return ()
        return site.in_group("storage") or site.in_group("services")[:1]

    def name(self, site: Site) -> str:
        """`s3.<domain>`, where the gateway serves it."""
        return f"s3.{site.domain}"

    def internal_name(self, site: Site) -> str:
        """`object-store.<domain>`: every node that keeps objects, so that clients go on while one of them is away."""
        return f"object-store.{site.domain}"

    def names(self, site: Site) -> Mapping[str, tuple[IPv4Address, ...]]:
        """The name for the site's services, at every node that keeps objects."""
        hosts = self.hosts(site)
        return {self.internal_name(site): tuple(host.address for host in hosts)} if hosts else {}

    def internal_endpoint(self, site: Site) -> str:
        """URL for the site's services."""
        return self.url or f"https://{self.internal_name(site)}:{self.port}"

    def endpoint(self, site: Site) -> str:
        """URL for people and their programs."""
        if self.engine == "minio" and site.is_on("gateway"):
            return f"https://{self.name(site)}"
        return self.internal_endpoint(site)

    def all_buckets(self, site: Site) -> Mapping[str, Bucket]:
        """Every bucket of the site: those named here, and those that roles ask for."""
        asked = {one.name: Bucket(data_class="plain") for _, one in site.buckets}
        return {**asked, **self.named_buckets}

    def all_users(self, site: Site) -> Mapping[str, User]:
        """Every user with rights to buckets: those named here, and one for each role that asks for a bucket."""
        asked: dict[str, tuple[str, ...]] = {}
        for role, bucket in site.buckets:
            asked[access_key(role)] = (*asked.get(access_key(role), ()), bucket.name)
        return {**{user: User(write=names) for user, names in asked.items()}, **self.users}

    def secret_of_user(self, site: Site, user: str) -> tuple[str, str]:
        """Role and name of the secret that is a user's secret key."""
        for role, bucket in site.buckets:
            if access_key(role) == user:
                return role, bucket.secret
        return "object_store", f"user_{user}"

    def secrets(self, site: Site) -> Iterable[Secret]:
        """One for the administrator, one a user, and the key that objects are encrypted with."""
        if self.engine == "minio":
            yield Secret("root_password", why="the administrator of the object store")
            yield Secret("encryption_key", "key32", "encrypts every object", rotatable=False)
            yield Secret("audit_token", "token", why="what may write to the audit log")
            yield Secret(f"user_{METRICS}", why="who may read the object store's metrics")
        for user in (*self.users, VERIFIER, STRANGER):
            yield Secret(f"user_{user}", why=f"secret key of S3 user {user}", given=self.given)

    @property
    def given(self) -> bool:
        """Whether keys of users come from somebody else's S3."""
        return self.engine == "external"

    def certificates(self, site: Site, node: Node) -> Iterable[Certificate]:
        """One server certificate a node, good for its own name and for those that all nodes share."""
        if node in self.hosts(site):
            names = (site.full_name(node), self.internal_name(site), self.name(site))
            yield Certificate("object_store", dns=names, addresses=(node.address,))

    def openings(self, site: Site, node: Node) -> Iterable[Opening]:
        """S3 for its nodes among each other, for the roles that use it, and for the controller, which verifies it."""
        if node in self.hosts(site):
            yield Opening(self.port, (*sorted(self._clients(site)), "controller"), "object storage (S3)")

    def _clients(self, site: Site) -> set[str]:
        """Who connects to it. Where no gateway stands before it, that is everybody."""
        behind = set(gateway_sources(site))
        if not site.is_on("gateway"):
            return behind
        roles = {role for role, _ in site.buckets}
        groups = {
            group
            for settings in map(site.settings, roles)
            for group in settings.groups + settings.optional_groups
            if site.in_group(group)
        }
        return behind | groups | {f"{node.address}/32" for node in self.hosts(site)}

    def routes(self, site: Site) -> Iterable[Route]:
        """`s3.<domain>`; a company's own S3 has a name already."""
        if hosts := self.hosts(site):
            yield Route("s3", self.port, tuple(host.name for host in hosts), health="/minio/health/live")

    def artifacts(self) -> Iterable[str]:
        """MinIO and its client."""
        return ("minio", "minio-client") if self.engine == "minio" else ()

    def notices(self, site: Site) -> Iterable[str]:
        """Who looks after the engine; what a single drive is worth."""
        if self.engine == "minio":
            yield (
                "MinIO's community edition is unmaintained since February 2026: nobody mends what is found in it. Keep "
                "it behind the firewall and the gateway, and plan its successor (roles/object_store/README.md, "
                "another engine)"
            )
            if len(self.drives) * len(self.hosts(site)) == 1:
                yield "its objects lie on one drive, and are lost with it; back them up, or name four drives or more"

    def problems(self, site: Site) -> Iterable[Problem]:
        """Names that there are twice or not at all, a number of drives that protects nothing, half an external S3."""
        if (self.engine == "external") != (self.url is not None):
            yield Problem("`url` is for engine `external`, which needs it; correct one of the two", "engine")
        if self.authority is not None and self.engine != "external":
            yield Problem("`authority` is for engine `external`; remove it", "authority")
        drives = len(self.drives) * len(self.hosts(site))
        if len(set(self.drives)) < len(self.drives):
            yield Problem("a drive is named twice", "drives")
        if self.engine == "minio" and 1 < drives < 4:
            yield Problem(f"{drives} drives in all protect nothing; name one, or four and more", "drives")
        yield from self._wrong_buckets(site)
        yield from self._wrong_users(site)

    def _wrong_buckets(self, site: Site) -> Iterator[Problem]:
        asked = {bucket.name: role for role, bucket in site.buckets}
        for name, bucket in self.named_buckets.items():
            if name in asked:
                yield Problem(
                    f"role {asked[name]} has a bucket of this name; call it something else", f"buckets.{name}"
                )
            if name.startswith(RESERVED):
                yield Problem(f"names with {RESERVED} belong to the checks; call it something else", f"buckets.{name}")
            if bucket.data_class not in self.classes:
                known = ", ".join(self.classes)
                yield Problem(f'no class "{bucket.data_class}"; there are {known}', f"buckets.{name}.data_class")

    def _wrong_users(self, site: Site) -> Iterator[Problem]:
        taken = {VERIFIER, STRANGER, METRICS, *(access_key(role) for role, _ in site.buckets)}
        known = self.all_buckets(site)
        for user, rights in self.users.items():
            if user in taken:
                yield Problem(f'"{user}" is a user of the platform; call it something else', f"users.{user}")
            for field in ("read", "write"):
                for at, bucket in enumerate(getattr(rights, field)):
                    if bucket not in known:
                        yield Problem(
                            f'there is no bucket "{bucket}"; add it to settings.object_store.buckets',
                            f"users.{user}.{field}.{at}",
                        )


def access_key(role: str) -> str:
    """The S3 user of a role that asks for buckets."""
    return role.replace("_", "-")
