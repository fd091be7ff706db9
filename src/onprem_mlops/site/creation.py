"""Making a new site's folder: whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from onprem_mlops.errors import RequestError
from onprem_mlops.site.document import PlacedProblem, SiteError
from onprem_mlops.site.loader import SITE_FILE, load_site
from onprem_mlops.site.material import create_material
from onprem_mlops.site.model import Site
from onprem_mlops.site.secrets import Recipient


@dataclass(frozen=True)
class NewNode:
    """A node of a site to be made."""

    name: str
    address: IPv4Address
    groups: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> NewNode:
        """From ``name=address:group,group``. RequestError if it is not that."""
        name, equals, rest = text.partition("=")
        address, colon, groups = rest.partition(":")
        try:
            parsed = IPv4Address(address.strip())
        except ValueError:
            parsed = None
        if not (name and equals and colon and groups and parsed):
            raise RequestError(
                f'"{text}" is not a node', "Write name=address:group,group, such as cp1=192.0.2.11:control_plane."
            )
        return cls(name.strip(), parsed, tuple(group.strip() for group in groups.split(",")))


@dataclass(frozen=True)
class NewSite:
    """What a person says about a site to be made."""

    name: str
    domain: str
    nodes: tuple[NewNode, ...]
    network: IPv4Network
    api_address: IPv4Address | None = None
    ssh_user: str = "mlops"
    ssh_port: int = 22
    ssh_key: str = "~/.ssh/id_ed25519"


def create_site(new: NewSite, host_keys: dict[str, str], folder: Path, recipients: list[Recipient]) -> Site:
    """Make ``folder`` with site.yaml, secrets, authority and inventory.py; give the site.

    It is made beside its place and moved there when it is right, so that a failure leaves nothing. RequestError if
    ``folder`` exists, SiteError if what the person said makes no right site.
    """
    refuse_existing(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise RequestError(f"cannot make {folder}: {error.strerror}", "Nothing was made.") from None
    try:
        draft.chmod(0o755)
        (draft / SITE_FILE).write_text(site_file(new, host_keys), encoding="utf-8")
        (draft / "inventory.py").write_text(INVENTORY_PY, encoding="utf-8")
        create_material(_load_draft(draft, folder), recipients)
        draft.rename(folder)
    except OSError as error:
        raise RequestError(f"cannot make {folder}: {error.strerror}", "Nothing was made.") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return load_site(folder)


def refuse_existing(folder: Path) -> None:
    """RequestError if there is something at ``folder``: a site is never overwritten."""
    if folder.exists():
        raise RequestError(f"{folder} exists already", "Choose another name, or edit the site file there.")


def _load_draft(draft: Path, folder: Path) -> Site:
    try:
        return load_site(draft)
    except SiteError as error:
        problems = tuple(
            PlacedProblem(str(folder / SITE_FILE), one.line, one.column, one.message) for one in error.problems
        )
        raise SiteError(problems) from None


INVENTORY_PY = '''\
"""Lets plain pyinfra work: pyinfra inventories/<site>/inventory.py deploys/<phase>.py."""

from onprem_mlops.engine.inventory import groups

globals().update(groups(__file__))
'''


def site_file(new: NewSite, host_keys: dict[str, str]) -> str:
    """The commented site.yaml of a new site."""
    api_address = (
        f"api_address: {new.api_address}"
        if new.api_address
        else "# api_address: a free address of `nodes`, needed for three control planes"
    )
    nodes = "".join(_node_entry(node, host_keys.get(node.name, "")) for node in new.nodes)
    return f"""\
# Site {new.name}: the single truth about it. Check it with
#   ./mlops validate -i inventories/{new.name}
# Every field and its default is explained in docs/reference/site-file.md.
version: 1
name: {new.name}
domain: {new.domain}           # nodes are <name>.{new.domain}; the mirror is mirror.{new.domain}
# description: what this site is for

# How this machine reaches the nodes. The account needs sudo without a password.
ssh:
  user: {new.ssh_user}
  port: {new.ssh_port}
  key: {new.ssh_key}      # mode 600; stays on this machine
  # sudo: true                  # false only if the account is root itself

# Three networks that share no address.
networks:
  nodes: {new.network}          # where the nodes' addresses are
  pods: 10.244.0.0/16           # each node takes a /24
  services: 10.96.0.0/12        # virtual addresses of Services
  {api_address}

# Debian packages come from the site's own mirror only, so nodes need no internet. To change that:
# apt:
#   mirror: http://debian.{new.domain}/debian
#   proxy: http://proxy.{new.domain}:3128

# One entry a machine. host_key is pinned: a machine that shows another key is refused.
# Also possible:
#   labels: {{topology.kubernetes.io/zone: rack1}}
#   taints: ["nvidia.com/gpu=present:NoSchedule"]
#   release: 12                 # Debian 12 or 13; not given: whatever of the two is found
#   facts:
#     disks: [{{device: /dev/disk/by-id/nvme-..., size: 2TB, kind: nvme}}]
#     gpus: [{{model: NVIDIA-L4, count: 2}}]
nodes:
{nodes}
# Roles that are on. Not given: all there are.
# roles: [node, firewall, ...]

# Settings of roles that differ from their defaults.
# settings:
#   kubernetes:
#     ...
"""


def _node_entry(node: NewNode, host_key: str) -> str:
    return f"""\
  - name: {node.name}
    address: {node.address}
    host_key: {host_key}
    groups: [{", ".join(node.groups)}]
"""
