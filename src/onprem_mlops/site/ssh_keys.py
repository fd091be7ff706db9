"""SSH key pairs of our own: those that a lab's site file calls generated."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from onprem_mlops.atomic import write_atomically
from onprem_mlops.site.safe_file import private_folder


def ensure_key_pair(path: Path, comment: str) -> str:
    """The public line of the ed25519 key pair ``path`` and ``path``.pub; made if missing.

    The public half is always derived from the private one, so a kill between the two leaves nothing that is wrong.
    """
    public_file = path.with_name(path.name + ".pub")
    if not path.exists():
        private_folder(path.parent)
        private = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        write_atomically(path, private)
    if not public_file.exists():
        key = serialization.load_ssh_private_key(path.read_bytes(), None)
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        write_atomically(public_file, public + f" {comment}\n".encode(), 0o644)
    return public_file.read_text().strip()
