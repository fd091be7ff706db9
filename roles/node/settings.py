"""What a node is before any component runs on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import Annotated, ClassVar

from pydantic import AfterValidator, ByteSize, Field, StrictInt

from onprem_mlops.roles import ALL, Opening, RoleSettings
from onprem_mlops.site import Node, Site
from onprem_mlops.site.fields import Size, UserName

KERNEL_PARAMETERS: Mapping[str, tuple[str, str]] = {
    "net.ipv4.ip_forward": ("1", "the node routes its pods' packets"),
    "net.ipv4.conf.all.accept_redirects": ("0", "nobody on the network may change the node's routes"),
    "net.ipv4.conf.default.accept_redirects": ("0", "the same for interfaces that come later"),
    "net.ipv6.conf.all.accept_redirects": ("0", "the same for IPv6"),
    "net.ipv6.conf.default.accept_redirects": ("0", "the same for interfaces that come later"),
    "net.ipv4.conf.all.send_redirects": ("0", "a router of pods never tells others to go around it"),
    "net.ipv4.conf.default.send_redirects": ("0", "the same for interfaces that come later"),
    "net.ipv4.conf.all.accept_source_route": ("0", "the sender does not choose the way"),
    "net.ipv4.tcp_syncookies": ("1", "a flood of half-open connections does not keep others out"),
    "fs.inotify.max_user_instances": ("8192", "kubelet and many pods watch files; the default of 128 runs out"),
    "fs.inotify.max_user_watches": ("1048576", "the same"),
    "vm.overcommit_memory": ("1", "kubelet refuses to start with another value if it protects kernel defaults"),
    "vm.panic_on_oom": ("0", "the kernel ends a process, not the node; kubelet checks it"),
    "kernel.panic": ("10", "a crashed kernel boots again by itself; kubelet checks it"),
    "kernel.panic_on_oops": ("1", "a kernel that found itself damaged stops at once; kubelet checks it"),
    "kernel.dmesg_restrict": ("1", "kernel messages tell attackers about addresses"),
}
"""Kernel parameters, with the reason for each."""


def _at_least_64_mebibytes(size: int) -> int:
    if size < 64 << 20:
        raise ValueError(f"{size} bytes is too little for a journal; write a size with its unit, such as 1GiB")
    return size


JournalSize = Annotated[Size, AfterValidator(_at_least_64_mebibytes)]


class Settings(RoleSettings):
    """What every node needs: names, trust, packages, time, kernel settings, journal, updates, SSH and sudo."""

    groups: ClassVar[tuple[str, ...]] = (ALL,)
    optional_groups: ClassVar[tuple[str, ...]] = ("backup",)
    """A node for backups and logs is a bare node until a role of its own runs on it."""
    requires: ClassVar[tuple[str, ...]] = ("mirror",)

    authority_path: ClassVar[str] = "/usr/local/share/ca-certificates/onprem-mlops.crt"
    """Where the certificate of the site's authority lies on every node; other roles read it from here."""
    supported: ClassVar[Mapping[str, str]] = {"12": "bookworm", "13": "trixie"}
    """Debian releases that are laid down here; anything else is refused before it is touched."""

    admin_users: tuple[UserName, ...] = Field(
        (), description="Accounts that may log in over SSH beside the one in `ssh.user`. None: nobody needs to."
    )
    time_servers: tuple[str, ...] = Field(
        (),
        description="NTP servers that nodes may reach. None: the nodes follow the first node of group `services`, "
        "so that without internet they at least agree with each other.",
    )
    set_clock: bool = Field(
        True,
        description="Whether nodes set their own clock. Off where they cannot (containers share their host's): "
        "chrony then only measures.",
    )
    modules: tuple[str, ...] = Field(
        ("overlay", "nf_conntrack", "vxlan"),
        description="Kernel modules to load: overlay for containers' file systems, nf_conntrack for the packet filter "
        "and Services, vxlan for the pods' network. Pods are routed, not bridged, so br_netfilter is not among them.",
    )
    sysctl: Mapping[str, str | None] = Field(
        default_factory=dict,
        description="Kernel parameters beside or instead of the defaults in the role's README; null leaves one alone.",
    )
    swap: bool = Field(
        False, description="Whether swap may be on. Off: a pod's memory limit means memory, and kubelet expects it."
    )
    disk_free_percent: StrictInt = Field(
        5,
        ge=0,
        le=50,
        description="What verification wants left of each file system, of its space and of its entries for files. "
        "Below this a disk is full within days.",
    )
    journal_size: JournalSize = Field(
        ByteSize(2 << 30), description="Disk space of the journal at most: weeks of a busy node's messages."
    )
    journal_days: StrictInt = Field(
        90, ge=1, le=3650, description="Days after which messages go, whether there is space or not."
    )
    held_packages: tuple[str, ...] = Field(
        ("runc", "containerd", "haproxy", "keepalived"),
        description="Installed packages that only a deploy upgrades, to what the mirror offers: what restarts pods or "
        "moves the API's address changes then, not at night.",
    )
    automatic_updates: bool = Field(
        True, description="Security updates every day by themselves, from the site's mirror or `apt.mirror`."
    )

    def openings(self, site: Site, node: Node) -> Iterable[Opening]:
        """SSH for the controller, and time for the nodes where the site's own clock is."""
        yield Opening(site.ssh.port, ("controller",), "SSH, which everything is laid down and verified over")
        if not self.time_servers and node == self.clock(site):
            yield Opening(123, ("nodes",), "time for the other nodes", "udp")

    def clock(self, site: Site) -> Node:
        """The node that the others take the time from if there are no time servers."""
        return (site.in_group("services") or site.nodes)[0]

    def kernel_parameters(self) -> dict[str, str]:
        """Parameters and values that hold on the nodes."""
        wanted: dict[str, str | None] = {key: value for key, (value, _) in KERNEL_PARAMETERS.items()}
        return {key: value for key, value in (wanted | dict(self.sysctl)).items() if value is not None}

    def problems(self, site: Site) -> Iterable[str]:
        """A node's names must not be claimed by a role."""
        for server in self.time_servers:
            if " " in server or not server:
                yield f'"{server}" is not a time server; write a name or an address'

    def addresses_of_names(self, site: Site) -> Mapping[IPv4Address, tuple[str, ...]]:
        """What /etc/hosts holds: for each address the full names, and a node's short name."""
        found: dict[IPv4Address, list[str]] = {}
        for name, addresses in site.names.items():
            for address in addresses:
                found.setdefault(address, []).append(name)
        for node in site.nodes:
            found[node.address].append(node.name)
        return {address: tuple(names) for address, names in sorted(found.items())}
