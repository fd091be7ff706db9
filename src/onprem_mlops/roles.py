"""What a role is. Roles import everything they need to declare and to act from here."""

from __future__ import annotations

from onprem_mlops.site.role import (
    ALL,
    Bucket,
    Certificate,
    Database,
    Forge,
    Opening,
    Problem,
    Role,
    RoleSettings,
    Route,
    Secret,
    find_roles,
    gateway_sources,
)
from onprem_mlops.steps import (
    Context,
    KnownLater,
    Pending,
    PublishedFile,
    admission,
    package_offers,
    removal,
    step,
)

__all__ = [
    "ALL",
    "Bucket",
    "Certificate",
    "Context",
    "Database",
    "Forge",
    "KnownLater",
    "Opening",
    "Pending",
    "Problem",
    "PublishedFile",
    "Role",
    "RoleSettings",
    "Route",
    "Secret",
    "admission",
    "find_roles",
    "gateway_sources",
    "package_offers",
    "removal",
    "step",
]
