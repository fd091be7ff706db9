"""What the gpu role reads of a site file, and what it declares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from onprem_mlops.roles import Problem, RoleSettings
from onprem_mlops.site import Node, Site

Namespace = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]


class Settings(RoleSettings):
    """GPU nodes: NVIDIA's driver and the kernel that it is built for, held together, and the cards offered to pods."""

    groups: ClassVar[tuple[str, ...]] = ("gpu",)
    optional_groups: ClassVar[tuple[str, ...]] = ("control_plane",)
    requires: ClassVar[tuple[str, ...]] = ("node", "mirror", "containerd", "kubernetes")

    folder: ClassVar[str] = "/var/lib/onprem-gpu"
    """What the role keeps on a node: modules as they were built, so that there is a way back."""
    resource: ClassVar[str] = "nvidia.com/gpu"
    """What pods ask for, and the key of the taint."""

    driver: str | None = Field(
        None,
        pattern=r"^\d+\.\d+(\.\d+)?$",
        description="Version of the driver, such as 535.309.01, of those that the mirror has. None: its newest, which "
        "changes only when you build the mirror's archive again. Another version is laid down node by node.",
    )
    kernel: str | None = Field(
        None,
        pattern=r"^\d+(\.\d+)+-\d+-amd64$",
        description="Release of the kernel that the driver is built for and nodes boot, such as 6.1.0-56-amd64. None: "
        "the newest of the mirror, as for the driver.",
    )
    modules: Literal["auto", "proprietary", "open"] = Field(
        "auto",
        description="Which of NVIDIA's kernel modules. auto: the proprietary ones, which know all cards up to Hopper; "
        "the open ones where a card needs them (Blackwell), and these are not in Debian 12.",
    )
    shared_by: int = Field(
        1,
        ge=1,
        le=64,
        description="Pods that share one card by turns (time-slicing). 1: a card belongs to one pod. Shared cards have "
        "no walls between their memories, so this is for people who trust each other.",
    )
    quotas: Mapping[Namespace, int] = Field(
        default_factory=dict,
        description="Cards that the pods of a team's namespace may hold together. A namespace that is not named here "
        "may hold none: who gets a card is decided here, not by who comes first.",
    )
    boot_minutes: int = Field(
        15, ge=2, le=120, description="How long a node may take to come back from a reboot before the run stops there."
    )

    def nodes(self, site: Site) -> tuple[Node, ...]:
        """The nodes with cards."""
        return site.in_group("gpu")

    @staticmethod
    def simulated(node: Node) -> bool:
        """Whether a node's cards are not real: then no module is loaded, and every display says so."""
        return any(gpu.simulated for gpu in node.facts.gpus)

    def artifacts(self) -> Iterable[str]:
        """The driver's packages, what offers cards to containers, and what measures them."""
        return ("debs-gpu-bookworm", "nvidia-container-toolkit", "gpu-exporter", "uv", "simulated-gpu")

    def problems(self, site: Site) -> Iterable[str | Problem]:
        """Cards without a node for them, nodes without cards, and halves of a simulation."""
        for node in site.nodes:
            if node.facts.gpus and "gpu" not in node.groups:
                yield Problem("has GPUs and is not in group gpu; add the group", "facts.gpus", node.name)
            if "gpu" not in node.groups:
                continue
            if not node.facts.gpus:
                yield Problem("is in group gpu and names no GPUs; add them to facts.gpus", "groups", node.name)
            if "worker" not in node.groups:
                yield Problem("is in group gpu and no worker, so no pod would reach its GPUs", "groups", node.name)
            if len({gpu.simulated for gpu in node.facts.gpus}) > 1:
                yield Problem("has real and simulated GPUs; a node has one kind", "facts.gpus", node.name)
