"""What the gitea_runner role reads of a site file, and what it declares."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network
from typing import Annotated, ClassVar

from pydantic import ByteSize, Field, StrictInt, StringConstraints

from onprem_mlops.roles import Problem, RoleSettings, Secret
from onprem_mlops.site import Node, Site
from onprem_mlops.site.fields import MemoryLimit, Size

LOOPBACK_PORTS = "20000-60999"


class Settings(RoleSettings):
    """Workflows of the site's Gitea, each job in a world of its own that is gone with it."""

    groups: ClassVar[tuple[str, ...]] = ("services",)
    optional_groups: ClassVar[tuple[str, ...]] = ("runner",)
    requires: ClassVar[tuple[str, ...]] = ("node", "mirror", "gitea")

    cache_port: ClassVar[int] = 4480
    """Port of the cache on the node's loopback."""
    data: ClassVar[str] = "/var/lib/onprem-gitea-runner"
    """Holds the folders of jobs while they run, and the slots' registrations."""
    cache: ClassVar[str] = "/var/lib/onprem-gitea-cache"
    organisation: ClassVar[str] = "actions"
    """The organisation that holds the site's own actions, under upstream's names."""

    capacity: StrictInt = Field(
        2,
        ge=1,
        le=32,
        description="Jobs that run at once on each node, each in a slot of its own with these limits.",
    )
    labels: tuple[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], ...] = Field(
        (), description="Labels for `runs-on` beside those that follow from the node, such as `debian-12`."
    )
    timeout_minutes: StrictInt = Field(
        180,
        ge=1,
        le=10080,
        description="Minutes after which a job is ended. Gitea itself ends jobs after 3 hours.",
    )
    memory: MemoryLimit = Field("2G", description="Memory of one job at most; what needs more is ended.")
    cpus: StrictInt = Field(1, ge=1, le=1024, description="Processors that one job may keep busy.")
    cache_size: Size = Field(
        ByteSize(20 << 30),
        description="Disk space of what jobs cache; beyond it, what is oldest goes when the next job begins.",
    )
    processes: StrictInt = Field(1024, ge=64, le=65536, description="Processes and threads of one job at most.")
    reach: tuple[IPv4Network, ...] = Field(
        (),
        description="Networks that jobs may reach beside Gitea, the mirror and the gateway. None: a job is whatever "
        "somebody pushed, and the other services of the node are not for it.",
    )
    packages: tuple[str, ...] = Field(
        ("git", "git-lfs", "jq", "python3-venv", "xz-utils", "zstd"),
        description="Debian packages that jobs find; the mirror must offer them. The default is what the site's own "
        "actions need, and Python for machine learning.",
    )

    def hosts(self, site: Site) -> tuple[Node, ...]:
        """The nodes that run jobs: all of group `runner`, else the first of `services`."""
        return site.in_group("runner") or site.in_group("services")[:1]

    def user(self, slot: int) -> str:
        """The account of one slot's jobs."""
        return f"onprem-job-{slot}"

    @property
    def slots(self) -> range:
        """Numbers of the slots of a node."""
        return range(1, self.capacity + 1)

    def secrets(self, site: Site) -> Iterable[Secret]:
        """What Gitea takes a runner's registration for, and what lets the runner tell the cache whose a job is."""
        yield Secret("registration_token", "token")
        yield Secret("cache_secret", "token")

    def artifacts(self) -> Iterable[str]:
        """The program."""
        return ("gitea-runner",)

    def problems(self, site: Site) -> Iterable[Problem]:
        """A job must be able to run inside the node's limits."""
        if len(set(self.labels)) != len(self.labels):
            yield Problem("a label is named twice; name each once", "labels")
