"""The lab's SSH keys. They are made before the first boot, so that host keys are pinned, never accepted on sight."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from onprem_mlops.lab.folders import LabFolders
from onprem_mlops.lab.host import locked, write_atomically
from onprem_mlops.lab.spec import LabSpec

DEPLOY_USER = "deploy"
"""The SSH user of lab nodes, who has sudo without a password, as on real sites."""


@dataclass(frozen=True, slots=True)
class LabKeys:
    """Where the deploy user's private key lies, its public line, and each node's public host key line."""

    deploy: Path
    deploy_public: str
    host: dict[str, str]

    known_hosts: Path


def ensure_keys(spec: LabSpec) -> LabKeys:
    """Make the keys that are missing and return all. Needs neither root nor a running lab."""
    folders = LabFolders(spec.site)
    with locked(folders.keys / "lock"):
        public = _key_pair(folders.keys / "deploy", f"{DEPLOY_USER}@{spec.site}")
        host = {node.name: _key_pair(folders.keys / "host" / node.name, node.name) for node in spec.nodes}
        lines = "".join(f"{node.address} {host[node.name]}\n" for node in spec.nodes)
        write_atomically(folders.known_hosts, lines)
    return LabKeys(folders.keys / "deploy", public, host, folders.known_hosts)


def host_private_key(spec: LabSpec, node: str) -> str:
    """The private host key of a node, in OpenSSH's format."""
    return (LabFolders(spec.site).keys / "host" / node).read_text()


def _key_pair(path: Path, comment: str) -> str:
    """The public line of the key pair at `path` (private) and `path`.pub; made if missing."""
    public = path.with_name(f"{path.name}.pub")
    if path.exists() and public.exists():
        return public.read_text().strip()
    key = Ed25519PrivateKey.generate()
    private_text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    ).decode()
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_atomically(path, private_text, 0o600)
    write_atomically(public, f"{line.decode()} {comment}\n")
    return public.read_text().strip()
