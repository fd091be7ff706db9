"""What a role is. Roles import everything they need to declare and to act from here."""

from __future__ import annotations

from onprem_mlops.site.role import (
    ALL,
    Certificate,
    Opening,
    Problem,
    Role,
    RoleSettings,
    Secret,
    find_roles,
)

__all__ = ["ALL", "Certificate", "Opening", "Problem", "Role", "RoleSettings", "Secret", "find_roles"]
