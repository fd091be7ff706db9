"""The lab's SSH keys. They are made before the first boot, so that host keys are pinned, never accepted on sight."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onprem_mlops.atomic import write_atomically
from onprem_mlops.lab.folders import LabFolders
from onprem_mlops.lab.spec import LabSpec
from onprem_mlops.locks import locked
from onprem_mlops.site import LabKeys as KeyFiles
from onprem_mlops.site.ssh_keys import ensure_key_pair


@dataclass(frozen=True, slots=True)
class LabKeys:
    """The SSH user's private key file and public line, and each node's public host key line."""

    user: Path
    user_public: str
    host: dict[str, str]
    known_hosts: Path


def ensure_keys(spec: LabSpec) -> LabKeys:
    """Make the keys that are missing, where the site file looks for them. Needs neither root nor a running lab."""
    folders, files = LabFolders(spec.site), KeyFiles(spec.site)
    with locked(files.user_key.with_name("lock")):
        public = ensure_key_pair(files.user_key, f"{spec.user}@{spec.site}")
        host = {node.name: ensure_key_pair(files.host_key_file(node.name), node.name) for node in spec.nodes}
        lines = "".join(f"{node.address} {host[node.name]}\n" for node in spec.nodes)
        write_atomically(folders.known_hosts, lines.encode())
    return LabKeys(files.user_key, public, host, folders.known_hosts)


def user_key(spec: LabSpec) -> Path:
    """The SSH user's private key file."""
    return KeyFiles(spec.site).user_key


def host_private_key(spec: LabSpec, node: str) -> str:
    """The private host key of a node, in OpenSSH's format."""
    return KeyFiles(spec.site).host_key_file(node).read_text()
