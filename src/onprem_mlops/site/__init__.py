"""The single truth about a site: ``load_site`` reads it, ``Site`` is it."""

from onprem_mlops.site.authority import IssuedCertificate
from onprem_mlops.site.document import PlacedProblem, SiteError
from onprem_mlops.site.fields import Taint
from onprem_mlops.site.hidden import Hidden
from onprem_mlops.site.loader import load_site
from onprem_mlops.site.model import Apt, Disk, Facts, Gpu, Lab, LabKeys, Networks, Node, Site, Ssh

__all__ = [
    "Apt",
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
    "Site",
    "SiteError",
    "Ssh",
    "Taint",
    "load_site",
]
