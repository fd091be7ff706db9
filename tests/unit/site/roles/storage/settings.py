from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from onprem_mlops.roles import RoleSettings, Secret
from onprem_mlops.site import Site


class Volume(BaseModel):
    """A volume."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="What it is called. Short is good.")
    copies: Literal[1, 2, 3] = Field(default=2, description="How many copies.")


class Settings(RoleSettings):
    """Keeps objects."""

    groups: ClassVar[tuple[str, ...]] = ("services",)

    volumes: tuple[Volume, ...] = Field(default=(), description="Volumes to make.")
    upstream_password: str = Field(default="", max_length=8, description="Set by the upstream's owner.")

    def secrets(self, site: Site) -> Iterable[Secret]:
        yield Secret("root", "password")

    def names(self, site: Site) -> Mapping[str, IPv4Address]:
        return {f"storage.{site.domain}": site.in_group("services")[0].address}
