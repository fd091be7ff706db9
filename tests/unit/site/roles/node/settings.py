from __future__ import annotations

from ipaddress import IPv4Address
from typing import ClassVar

from pydantic import Field

from onprem_mlops.roles import RoleSettings


class Settings(RoleSettings):
    """What every node needs."""

    groups: ClassVar[tuple[str, ...]] = ("all",)

    time_servers: tuple[IPv4Address, ...] = Field(default=(), description="Where nodes get the time.")
    journal: str = Field(default="1G", pattern=r"\d+[MG]", description="Size of the journal.")
