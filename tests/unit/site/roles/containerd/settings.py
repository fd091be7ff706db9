from __future__ import annotations

from typing import ClassVar

from onprem_mlops.roles import RoleSettings


class Settings(RoleSettings):
    """Runs containers."""

    groups: ClassVar[tuple[str, ...]] = ("control_plane", "worker")
