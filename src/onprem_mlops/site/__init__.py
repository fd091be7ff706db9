"""The single truth about a site: ``load_site`` reads it, ``Site`` is it."""

from onprem_mlops.site.authority import CertificateStatus, IssuedCertificate
from onprem_mlops.site.document import PlacedProblem, SiteError
from onprem_mlops.site.fields import Taint
from onprem_mlops.site.hidden import Hidden
from onprem_mlops.site.loader import load_site
from onprem_mlops.site.material import SiteMaterial, ensure_lab_material
from onprem_mlops.site.model import (
    LAB_LONGEST_PREFIX,
    LAB_NETWORKS,
    MIRROR_PORT,
    Apt,
    Disk,
    Facts,
    Gpu,
    Lab,
    LabKeys,
    Networks,
    Node,
    Site,
    Ssh,
)
from onprem_mlops.site.secrets import Recipient, Secrets

__all__ = [
    "LAB_LONGEST_PREFIX",
    "LAB_NETWORKS",
    "MIRROR_PORT",
    "Apt",
    "CertificateStatus",
    "Disk",
    "Facts",
    "Gpu",
    "Hidden",
    "IssuedCertificate",
    "Lab",
    "LabKeys",
    "Networks",
    "Node",
    "PlacedProblem",
    "Recipient",
    "Secrets",
    "Site",
    "SiteError",
    "SiteMaterial",
    "Ssh",
    "Taint",
    "ensure_lab_material",
    "load_site",
]
