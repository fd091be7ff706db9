"""What the gpu role reads of a site file, and what it declares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictInt, StringConstraints

from onprem_mlops.roles import Opening, Problem, RoleSettings
from onprem_mlops.site import Node, Site

Namespace = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]


class Settings(RoleSettings):
    """GPU nodes: NVIDIA's driver and the kernel that it is built for, held together, and the cards offered to pods."""

    groups: ClassVar[tuple[str, ...]] = ("gpu",)
    optional_groups: ClassVar[tuple[str, ...]] = ("control_plane",)
    requires: ClassVar[tuple[str, ...]] = ("node", "mirror", "containerd", "kubernetes", "network")

    folder: ClassVar[str] = "/var/lib/onprem-gpu"
    """What the role keeps on a node: modules as they were built, so that there is a way back."""
    resource: ClassVar[str] = "nvidia.com/gpu"
    """What pods ask for, and the key of the taint."""

    driver: str | None = Field(
        None,
        pattern=r"^\d+\.\d+(\.\d+)?$",
        examples=["535.309.01"],
        description="Version of the driver, such as 535.309.01, of those that the mirror has. None: its newest, which "
        "changes only when you build the mirror's archive again. Another version is laid down node by node.",
    )
    kernel: str | None = Field(
        None,
        pattern=r"^\d+(\.\d+)+-\d+-amd64$",
        examples=["6.1.0-56-amd64"],
        description="Release of the kernel that the driver is built for and nodes boot, such as 6.1.0-56-amd64. None: "
        "the newest of the mirror, as for the driver.",
    )
    modules: Literal["auto", "proprietary", "open"] = Field(
        "auto",
        description="Which of NVIDIA's kernel modules. auto: the proprietary ones, which know all cards up to Hopper, "
        "and the open ones on a node with a card that needs them. The open ones know Turing and later; Debian 12 has "
        "them in the driver of its point release only, not in that of its security archive.",
    )
    shared_by: StrictInt = Field(
        1,
        ge=1,
        le=64,
        description="Pods that share one card by turns (time-slicing). 1: a card belongs to one pod. Shared cards have "
        "no walls between their memories, so this is for people who trust each other. A change empties node after "
        "node.",
    )
    mig: str | None = Field(
        None,
        pattern=r"^\d+g\.\d+gb(\+me)?$",
        examples=["1g.10gb"],
        description="Cut each card into as many parts of this profile as fit, such as 1g.10gb (MIG; A30, A100, H100 "
        "and later). A part counts as one GPU, with memory of its own. Nodes whose cards cannot be cut keep them "
        "whole. None: cards stay whole. A change empties node after node.",
    )
    quotas: Mapping[Namespace, Annotated[StrictInt, Field(ge=0)]] = Field(
        default_factory=dict,
        description="GPUs that the pods of a team's namespace may ask for together: cards, or parts of them with mig, "
        "or turns with shared_by; the namespace is made if it is not there. One that is not named here may hold none: "
        "who gets a card is decided here, not by who comes first.",
    )
    exporter_port: StrictInt = Field(
        9835, ge=1024, le=65535, description="Port of each GPU node's metrics, in the Prometheus format."
    )
    exporter_sources: tuple[str, ...] = Field(
        ("services",),
        description="Groups and networks that may read the metrics, which name the processes on the cards.",
    )
    drain_minutes: StrictInt = Field(
        10,
        ge=1,
        le=1440,
        description="How long pods may take to leave a node whose driver or kernel changes, as jobs need that write a "
        "checkpoint. A node that they do not leave stays as it is, and the run stops there.",
    )
    boot_minutes: StrictInt = Field(
        15,
        ge=2,
        le=120,
        description="How long a node may take to come back from a reboot before the run stops there.",
    )

    @classmethod
    def wanted(cls, nodes: Iterable[Node]) -> bool:
        """A site has the role as soon as one of its nodes has GPUs."""
        return any(node.facts.gpus or "gpu" in node.groups for node in nodes)

    def nodes(self, site: Site) -> tuple[Node, ...]:
        """The nodes with cards."""
        return site.in_group("gpu")

    @staticmethod
    def simulated(node: Node) -> bool:
        """Whether a node's cards are not real: then no module is loaded, and every display says so."""
        return any(gpu.simulated for gpu in node.facts.gpus)

    @staticmethod
    def cards(node: Node) -> int:
        """How many cards a node has."""
        return sum(gpu.count for gpu in node.facts.gpus)

    def offered(self, node: Node) -> int:
        """GPUs that a node offers to pods at least: shares count, parts of a card are known on the node only."""
        return self.cards(node) * self.shared_by

    def taints(self, site: Site, node: Node) -> Iterable[str]:
        """Only pods that ask for a GPU come to a node that has some; the API server lets these through."""
        if "gpu" in node.groups:
            yield f"{self.resource}=present:NoSchedule"

    def openings(self, site: Site, node: Node) -> Iterable[Opening]:
        """The metrics."""
        if "gpu" in node.groups:
            yield Opening(self.exporter_port, self.exporter_sources, "metrics of GPUs")

    def artifacts(self) -> Iterable[str]:
        """The driver's packages, what offers cards to pods, and what measures them."""
        images = ("image-nvidia-device-plugin", "image-node-feature-discovery", "image-netcheck")
        programs = ("nvidia-container-toolkit", "node-feature-discovery-manifest", "gpu-exporter", "uv")
        return ("debs-gpu-bookworm", *programs, *images, "simulated-gpu")

    def problems(self, site: Site) -> Iterable[str | Problem]:
        """Cards without a node for them, nodes without cards, and halves of a simulation."""
        if self.mig and self.shared_by > 1:
            yield Problem("parts of cards are not shared by turns here; give either mig or shared_by", "mig")
        for name in self.quotas:
            if name.startswith("kube-"):
                yield Problem(f"{name} is the cluster's own; name the namespace of a team", "quotas")
        for node in site.nodes:
            yield from self._problems_of(node)

    def _problems_of(self, node: Node) -> Iterable[Problem]:
        if node.facts.gpus and "gpu" not in node.groups:
            yield Problem("has GPUs and is not in group gpu; add the group", "facts.gpus", node.name)
        if "gpu" not in node.groups:
            return
        if not node.facts.gpus:
            yield Problem("is in group gpu and names no GPUs; add them to facts.gpus", "groups", node.name)
        if "worker" not in node.groups:
            yield Problem("is in group gpu and no worker, so no pod would reach its GPUs", "groups", node.name)
        if "control_plane" in node.groups:
            yield Problem(
                "is in group gpu and a control plane, which would boot with each driver; use a worker",
                "groups",
                node.name,
            )
        if len({gpu.simulated for gpu in node.facts.gpus}) > 1:
            yield Problem("has real and simulated GPUs; a node has one kind", "facts.gpus", node.name)
        if self.mig and self.simulated(node):
            message = "has simulated GPUs, which cannot be cut; leave out settings.gpu.mig"
            yield Problem(message, "facts.gpus", node.name)
