"""A site's own role with services for the gateway: what the cases are about depends on no other role."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from onprem_mlops.roles import RoleSettings, Route
from onprem_mlops.site import Site


class Settings(RoleSettings):
    """Two names over HTTPS, one of them also over SSH."""

    groups: ClassVar[tuple[str, ...]] = ("services",)

    ssh: int = 22
    """Port of the service behind the one that is passed through."""
    second: str = "other"
    """The second name."""

    def routes(self, site: Site) -> Iterable[Route]:
        """All on s1."""
        yield Route("echo", 9443, ("s1",), health="/health")
        yield Route(self.second, 9444, ("s1",))
        yield Route("echo", self.ssh, ("s1",), public_port=2222)
