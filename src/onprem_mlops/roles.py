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
from onprem_mlops.steps import Context, KnownLater, Pending, PublishedFile, admission, removal, step

__all__ = [
    "ALL",
    "Certificate",
    "Context",
    "KnownLater",
    "Opening",
    "Pending",
    "Problem",
    "PublishedFile",
    "Role",
    "RoleSettings",
    "Secret",
    "admission",
    "find_roles",
    "removal",
    "step",
]
