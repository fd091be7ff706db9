"""The site as it is after ``site.yaml`` was read and found right: typed, frozen, no dict in sight.

Field descriptions are the reference documentation; they say what a field means and why its default is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, StrictInt
from pydantic_core.core_schema import ValidationInfo

from onprem_mlops.errors import RequestError
from onprem_mlops.paths import site_state
from onprem_mlops.site import fields
from onprem_mlops.site.fields import (
    GENERATED,
    Address,
    BridgeName,
    DevicePath,
    DnsLabel,
    Domain,
    GroupName,
    HttpUrl,
    LabelKey,
    LabelValue,
    Network,
    Size,
    Taint,
    UserName,
)
from onprem_mlops.site.role import ALL, Bucket, Database, Forge, RoleSettings, Route

LAB_NETWORKS = IPv4Network("10.77.0.0/16")
"""Every lab address lies in here, so that a lab can never answer for a real host of the site."""

MIRROR_PORT = 4443
"""Of the site's own mirror."""

LAB_LONGEST_PREFIX = 28
"""Of a lab's network: with less there is no room for nodes and this machine."""


class Section(BaseModel):
    """A part of the site file: unknown keys are errors, nothing changes after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class LabKeys:
    """Context of validation for a lab: finds what ``./mlops lab up`` generated on this machine."""

    def __init__(self, site_name: str) -> None:
        self._ssh = site_state(site_name) / "ssh"

    @property
    def user_key(self) -> Path:
        """The private key that reaches the lab's nodes; absent before the first ``lab up``."""
        return self._ssh / "id_ed25519"

    def host_key_file(self, node: str) -> Path:
        """The private host key of a lab node; its public half lies beside it with ``.pub``."""
        return self._ssh / "host_keys" / node

    def host_key(self, node: str) -> str | None:
        """The public host key of a lab node, or None before the first ``lab up``."""
        public = self._ssh / "host_keys" / f"{node}.pub"
        return fields.host_key(public.read_text()) if public.is_file() else None


def _lab_keys(info: ValidationInfo, what: str) -> LabKeys:
    if isinstance(info.context, LabKeys):
        return info.context
    raise ValueError(f'{what} "{GENERATED}" is for labs only (a site with a `lab:` section); {_REAL[what]}')


_REAL = {
    "host key": 'write the line that "ssh-keyscan -t ed25519 ADDRESS" gives, without the address',
    "ssh key": "write the path of the private key, such as ~/.ssh/id_ed25519",
}


def _host_key(value: object, info: ValidationInfo) -> str | None:
    if value == GENERATED:
        return _lab_keys(info, "host key").host_key(str(info.data.get("name", "")))
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"no host key; {_REAL['host key']}")
    return fields.host_key(value)


def _key_path(value: object, info: ValidationInfo) -> Path:
    if value == GENERATED:
        return _lab_keys(info, "ssh key").user_key
    if not isinstance(value, (str, Path)):
        raise ValueError(f"not a path; {_REAL['ssh key']}")
    path = Path(value).expanduser()
    if not path.is_absolute():
        raise ValueError(f'"{value}" depends on the current folder; write a path from the root, or one with ~')
    return path


def _one_mebibyte(size: int) -> int:
    if size < 1 << 20:
        raise ValueError(f"{size} bytes is no disk; write a size with its unit, such as 500G")
    return size


class Ssh(Section):
    """How the controller reaches every node."""

    user: UserName = Field(
        default="mlops",
        description="Account to log in with. Not root: what needs root goes through sudo and is logged.",
    )
    port: StrictInt = Field(default=22, ge=1, le=65535, description="Port of sshd on the nodes.")
    key: Annotated[Path, BeforeValidator(_key_path)] = Field(
        default=Path("~/.ssh/id_ed25519"),
        description="Private key of that account, readable by you only; `~` is your home. "
        "`generated` in a lab: made on the first `lab up`.",
    )
    sudo: bool = Field(default=True, description="Become root with sudo. Off only if the account is root itself.")


class Networks(Section):
    """The three networks of a cluster. They share no address, nor may the nodes have routes into them."""

    nodes: Network = Field(description="Network the nodes' addresses are in, such as 192.0.2.0/24.")
    pods: Network = Field(
        default=IPv4Network("10.244.0.0/16"),
        description="Addresses of pods; each node takes a /24, so a /16 is enough for 256 nodes.",
    )
    services: Network = Field(
        default=IPv4Network("10.96.0.0/12"),
        description="Virtual addresses of Services, kubeadm's own default.",
    )
    api_address: Address | None = Field(
        default=None,
        description="Virtual address of the Kubernetes API, free and inside `nodes`. Needed for three control "
        "planes: it moves to a healthy one. With one control plane its own address serves.",
    )


class Apt(Section):
    """Where nodes get Debian packages that the site's own mirror does not carry."""

    mirror: HttpUrl | None = Field(
        default=None,
        description="A Debian mirror nodes may use. None: the site's own mirror only; nodes need no internet.",
    )
    proxy: HttpUrl | None = Field(default=None, description="An HTTP proxy for that mirror.")


class Disk(Section):
    """A block device that roles may use for data."""

    device: DevicePath = Field(description="Path of the device. /dev/disk/by-id/… survives a reboot, /dev/sdb may not.")
    size: Annotated[Size, AfterValidator(_one_mebibyte)] = Field(
        description="Size with its unit, such as 500G or 2TiB."
    )
    kind: Literal["nvme", "ssd", "hdd"] = Field(description="What it is, for roles that choose by speed.")
    simulated: bool = Field(default=False, description="Not real hardware; shown as such wherever the disk is named.")


class Gpu(Section):
    """GPUs of one model in a node."""

    model: str = Field(min_length=1, description="Model as its vendor names it, such as NVIDIA-L4.")
    count: StrictInt = Field(default=1, ge=1, le=32, description="How many of this model the node has.")
    simulated: bool = Field(default=False, description="Not real hardware; shown as such wherever the GPU is named.")


class Facts(Section):
    """What a node has that cannot be guessed from its name."""

    disks: tuple[Disk, ...] = Field(
        default=(), description="Disks for data. The disk with the system is not named here."
    )
    gpus: tuple[Gpu, ...] = Field(default=(), description="GPUs, one entry a model.")


class Node(Section):
    """One machine."""

    name: DnsLabel = Field(description="Host name, a DNS label; with the domain it is the node's full name.")
    address: Address = Field(description="Address, inside `networks.nodes`; SSH and the cluster use it.")
    host_key: Annotated[str | None, BeforeValidator(_host_key)] = Field(
        description="Its public SSH host key, `ssh-ed25519 AAAA…`. Pinned: a node that shows another one is "
        "refused. `generated` in a lab.",
    )
    groups: tuple[GroupName, ...] = Field(description="Groups the node is in; they decide which roles run on it.")
    labels: Mapping[LabelKey, LabelValue] = Field(default_factory=dict, description="Kubernetes labels.")
    taints: tuple[Taint, ...] = Field(default=(), description="Kubernetes taints, each `key=value:Effect`.")
    facts: Facts = Field(default=Facts(), description="Hardware that roles need to know of.")
    release: Literal[12, 13] | None = Field(
        default=None, description="Debian release the node runs. None: whatever of 12 and 13 is found there."
    )

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the host key, ``SHA256:…``."""
        return fields.fingerprint(self.host_key) if self.host_key else None


class Lab(Section):
    """Only in a lab: how this machine plays the data centre. Roles never look at it."""

    bridge: BridgeName = Field(
        default="br-mlops", description="Network bridge the nodes hang on; created and removed by the lab."
    )
    host_address: Address | None = Field(
        default=None,
        description="This machine's address on the bridge. None: the first address of `networks.nodes`.",
    )


class Site(Section):
    """One site, whole and consistent. Made by ``load_site``; a ``Site`` in hand needs no further checks."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, populate_by_name=True)

    version: Literal[1] = Field(description="Version of this format.")
    name: DnsLabel = Field(description="Short name of the site; names its state folder and its certificate authority.")
    domain: Domain = Field(description="Domain of nodes and services, such as mlops.example.com.")
    description: str = Field(default="", description="What the site is for.")
    ssh: Ssh = Field(default_factory=Ssh, description="How the controller reaches every node.")
    networks: Networks = Field(description="Networks of nodes, pods and Services.")
    apt: Apt = Field(default=Apt(), description="Where nodes get Debian packages beside the site's own mirror.")
    nodes: tuple[Node, ...] = Field(min_length=1, description="The machines.")
    roles: tuple[str, ...] = Field(
        default=(),
        description="Roles that are on. Not given: all roles there are, which is what the phases expect.",
    )
    role_settings: Mapping[str, SerializeAsAny[RoleSettings]] = Field(
        default_factory=dict,
        alias="settings",
        description="Settings of roles that differ from their defaults, by role.",
    )
    lab: Lab | None = Field(default=None, description="Makes the site a lab on this machine.")
    folder: Path = Field(default=Path(), exclude=True, description="The inventory folder it was read from.")

    def settings(self, role: str) -> RoleSettings:
        """Settings of a role that is on. RequestError if it is off."""
        try:
            return self.role_settings[role]
        except KeyError:
            raise RequestError(
                f"role {role} is off in site {self.name}",
                f"Add it to `roles:` in {self.folder / 'site.yaml'}.",
            ) from None

    def is_on(self, role: str) -> bool:
        """Whether the role is on."""
        return role in self.role_settings

    def needing(self, role: str) -> tuple[str, ...]:
        """Roles that are on and cannot be without ``role``."""
        return tuple(name for name, settings in self.role_settings.items() if role in settings.requires)

    def node(self, name: str) -> Node:
        """The node called ``name``. RequestError with a suggestion if there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.nodes)
        raise RequestError(f"site {self.name} has no node {name}", f"Its nodes: {known}.")

    def taints_of(self, node: Node) -> tuple[str, ...]:
        """Kubernetes taints of a node, each `key=value:Effect`: the site file's, and those that roles declare."""
        declared = (taint for settings in self.role_settings.values() for taint in settings.taints(self, node))
        return tuple(dict.fromkeys((*(str(one) for one in node.taints), *declared)))

    def in_group(self, *groups: str) -> tuple[Node, ...]:
        """Nodes in any of the groups, in the order of the site file; ``"all"`` is every node."""
        if ALL in groups:
            return self.nodes
        return tuple(node for node in self.nodes if not set(groups).isdisjoint(node.groups))

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups that have a node, sorted."""
        return tuple(sorted({group for node in self.nodes for group in node.groups}))

    def full_name(self, node: Node) -> str:
        """The node's name with the domain."""
        return f"{node.name}.{self.domain}"

    @property
    def mirror_name(self) -> str:
        """Full name of the site's own mirror, which nodes fetch everything from."""
        return f"mirror.{self.domain}"

    @property
    def mirror_url(self) -> str:
        """Where that mirror answers. Not on port 443: that is the gateway's, whose packages come from the mirror."""
        return f"https://{self.mirror_name}:{MIRROR_PORT}"

    @property
    def databases(self) -> tuple[tuple[str, Database], ...]:
        """Databases that roles need, each with the role's name."""
        return tuple((role, one) for role, of in self.role_settings.items() for one in of.databases(self))

    @property
    def buckets(self) -> tuple[tuple[str, Bucket], ...]:
        """Buckets that roles need, each with the role's name."""
        return tuple((role, one) for role, of in self.role_settings.items() for one in of.buckets(self))

    @property
    def wheelhouses(self) -> tuple[str, ...]:
        """Artifacts whose Python packages the site offers to people and jobs, each once."""
        return tuple(dict.fromkeys(one for of in self.role_settings.values() for one in of.wheelhouses(self)))

    @property
    def notices(self) -> tuple[tuple[str, str], ...]:
        """What people should know of the roles that are on, each with the role's name."""
        return tuple((role, one) for role, of in self.role_settings.items() for one in of.notices(self))

    @property
    def forge(self) -> Forge | None:
        """The site's own Git, if a role that is on serves it."""
        return next((one for of in self.role_settings.values() if (one := of.forge(self)) is not None), None)

    @property
    def routes(self) -> tuple[Route, ...]:
        """Names that the gateway serves."""
        return tuple(one for of in self.role_settings.values() for one in of.routes(self))

    @property
    def names(self) -> dict[str, tuple[IPv4Address, ...]]:
        """Full names that every node must resolve, with their addresses: the nodes', then those that roles declare."""
        names: dict[str, tuple[IPv4Address, ...]] = {self.full_name(node): (node.address,) for node in self.nodes}
        for settings in self.role_settings.values():
            for name, at in settings.names(self).items():
                names[name] = at if isinstance(at, tuple) else (at,)
        return names

    @property
    def api_address(self) -> IPv4Address:
        """Where the cluster's API answers: the virtual address, else the first control plane's own."""
        if self.networks.api_address is not None:
            return self.networks.api_address
        return self.in_group("control_plane")[0].address

    @property
    def state(self) -> Path:
        """The site's folder for what must outlive a run but never enters git."""
        return site_state(self.name)
