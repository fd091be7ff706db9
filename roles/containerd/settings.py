"""What the containerd role reads of a site file, and what it declares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictInt

from onprem_mlops.roles import RoleSettings


class Settings(RoleSettings):
    """What runs containers: containerd, runc, crictl and CNI plugins, with images from the site's mirror only."""

    groups: ClassVar[tuple[str, ...]] = ("control_plane", "worker")
    requires: ClassVar[tuple[str, ...]] = ("node", "mirror")

    cgroup_driver: Literal["systemd", "cgroupfs"] = Field(
        default="systemd",
        description="Who makes the cgroups of containers. systemd, because it already owns the tree on a node that "
        "it boots; cgroupfs only where its cgroups are not its own, as in a container. The kubelet follows this.",
    )
    restrict_oom_score_adj: bool = Field(
        default=False,
        description="Keep containers from a lower OOM score than containerd has. Only for nodes that lack "
        "CAP_SYS_RESOURCE; elsewhere it would put system pods first in line when memory runs out.",
    )
    registries: tuple[Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:\d+)?$")], ...] = Field(
        default=("registry.k8s.io", "quay.io", "docker.io", "ghcr.io", "nvcr.io", "onprem.local"),
        description="Registries that image references may name. Each is answered by the site's mirror and by nobody "
        "else; there is no way to the internet, not even as a fallback.",
    )
    parallel_downloads: StrictInt = Field(
        default=4,
        ge=1,
        le=32,
        description="Layers of one image fetched at once; the mirror is near and fast.",
    )

    def artifacts(self) -> Iterable[str]:
        """Names in the artifact catalogue that the role lays down."""
        return ("containerd", "crictl", "cni-plugins", "image-pause")
