from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from pydantic import Field

from onprem_mlops.roles import Certificate, Opening, Problem, RoleSettings, Secret
from onprem_mlops.site import Node, Site


class Settings(RoleSettings):
    """Schedules pods."""

    groups: ClassVar[tuple[str, ...]] = ("control_plane", "worker")
    requires: ClassVar[tuple[str, ...]] = ("containerd",)

    max_pods: int = Field(default=110, ge=10, le=500, description="Pods a node may run.")
    audit: bool = Field(default=True, description="Keep an audit log.")
    feature_gates: Mapping[str, bool] = Field(default_factory=dict, description="Gates by name.")

    def secrets(self, site: Site) -> Iterable[Secret]:
        yield Secret("encryption_key", "key32", "every Secret in etcd", rotatable=False)
        yield Secret("admin_password", "password")
        yield Secret("join", "token")

    def certificates(self, site: Site, node: Node) -> Iterable[Certificate]:
        if "control_plane" in node.groups:
            yield Certificate("api", dns=(f"api.{site.domain}",), addresses=(node.address,))

    def openings(self, site: Site, node: Node) -> Iterable[Opening]:
        yield Opening(6443, ("worker",), "API")

    def problems(self, site: Site) -> Iterable[str | Problem]:
        if self.max_pods > 250:
            yield Problem("a /24 a node has no room for more than 250 pods; write 250 or less", "max_pods")
        if self.feature_gates.get("Broken"):
            yield "the gate Broken breaks everything; remove it"
        for node in site.in_group("worker"):
            if len(node.taints) > 1:
                yield Problem("a worker takes one taint here; remove the others", "taints.1", node.name)
