"""The site's certificate authority and the leaf certificates it issues."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from onprem_mlops.site.hidden import Hidden


@dataclass(frozen=True)
class IssuedCertificate:
    """A leaf certificate with its key."""

    chain_pem: str
    """The leaf, then the authority."""
    key_pem: Hidden
    not_after: datetime
    serial: int
    renewed: bool
    """Whether this call issued it (or, in a plan, would)."""
