"""Who starts a node, starts it again when it reboots, and knows its processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from onprem_mlops.lab.folders import LabFolders, NodeFolders
from onprem_mlops.lab.host import Pid, is_init_of_container
from onprem_mlops.lab.spec import LabNode, LabSpec


@dataclass(frozen=True, slots=True)
class Container:
    """One node as this machine sees it."""

    spec: LabSpec
    node: LabNode

    @property
    def folders(self) -> NodeFolders:
        """Where its disks and logs lie."""
        return LabFolders(self.spec.site).node(self.node.name)

    @property
    def machine(self) -> str:
        """Its name on this machine."""
        return self.spec.machine(self.node)


class Supervision(Protocol):
    """How this machine runs nodes. What it starts outlives the process that called it."""

    def start(self, container: Container) -> None:
        """Begin to boot a node that is off, and return at once."""

    def adopt(self, container: Container) -> bool:
        """Take care of a running node again. False if only a clean stop and start can bring that about."""

    def supervised(self, container: Container) -> bool:
        """Whether someone is there who starts the node again when it reboots."""

    def processes(self, container: Container) -> list[Pid]:
        """All processes of the node, and of systemd-nspawn, as this machine numbers them."""

    def inits(self, container: Container) -> list[Pid]:
        """Processes among which the node's init is, likeliest first."""

    def memory_bytes(self, container: Container) -> int | None:
        """Memory in use by the node less what the kernel can drop at once; None if it is off."""

    def forget(self, container: Container) -> None:
        """Remove what is left of a node that is off."""

    def forget_lab(self, spec: LabSpec) -> None:
        """Remove what is left of a lab whose nodes are all off."""


def leader(supervision: Supervision, container: Container) -> Pid | None:
    """The node's init as this machine numbers it; None if the node is off."""
    return next((pid for pid in supervision.inits(container) if is_init_of_container(pid)), None)
