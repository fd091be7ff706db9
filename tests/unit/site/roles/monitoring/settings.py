from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from onprem_mlops.roles import RoleSettings


class Settings(RoleSettings):
    """Watches."""

    optional_groups: ClassVar[tuple[str, ...]] = ("backup",)

    retention: int | str = Field(default=30, description="Days, or a duration.")
    interval: float = Field(default=15, gt=0, description="Seconds between two looks.")
