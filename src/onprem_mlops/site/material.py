"""What a site holds besides its file: secrets, authority, certificates; for a lab also its SSH keys."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from onprem_mlops.atomic import write_atomically
from onprem_mlops.errors import RequestError
from onprem_mlops.site.authority import Authority, CertificateStatus, IssuedCertificate, create_authority, new_key
from onprem_mlops.site.hidden import Hidden
from onprem_mlops.site.loader import load_site
from onprem_mlops.site.model import LabKeys, Node, Site
from onprem_mlops.site.role import AUTHORITY, Certificate
from onprem_mlops.site.safe_file import private_folder
from onprem_mlops.site.secrets import (
    Recipient,
    Secrets,
    declared,
    ensure_identity,
    generate_value,
    identity_file,
    material_folder,
)
from onprem_mlops.site.ssh_keys import ensure_key_pair

_AUTHORITY_KEY = "key"


class SiteMaterial:
    """Secrets and certificates of a site, as steps receive them.

    With ``planning`` nothing is written: what a deploy would generate or issue is made up in memory and forgotten.
    """

    def __init__(self, site: Site, *, planning: bool = False) -> None:
        self._site = site
        self._planning = planning
        self._secrets = Secrets.of(site)
        self._made_up: dict[tuple[str, str], Hidden] = {}
        self._revealed: list[str] = []
        pem = authority_pem(site)
        try:
            self._authority = Authority(site, pem, self._authority_key, site.state / "certificates", planning=planning)
        except ValueError:
            raise RequestError(f"{authority_file(site)} is not a certificate", "Take it from git again.") from None

    def secret(self, role: str, name: str) -> Hidden:
        """One secret; a declared one that is lacking is generated (in a plan, made up)."""
        return self._handed_out(self._secret(role, name))

    def redact(self, text: str) -> str:
        """``text`` without any secret or private key that was handed out, for logs and messages."""
        for secret in self._revealed:
            text = text.replace(secret, "…")
        return text

    def _handed_out(self, hidden: Hidden) -> Hidden:
        """Remember what ``redact`` must mask: the text, and the lines of a key, which output may break apart."""
        text = hidden.reveal()
        lines = [line for line in text.splitlines() if line and not line.startswith("-----")]
        for part in (text, text.strip(), *lines):
            if len(part) > 3 and part not in self._revealed:
                self._revealed.append(part)
        self._revealed.sort(key=len, reverse=True)
        return hidden

    def _secret(self, role: str, name: str) -> Hidden:
        if self._secrets.has(role, name):
            return self._secrets.get(role, name)
        wanted = declared(self._site).get((role, name))
        if wanted is None:
            raise RequestError(
                f"role {role} asks for a secret {name} that it does not declare",
                f"Declare it in roles/{role}/settings.py, secrets().",
            )
        if self._planning:
            return self._made_up.setdefault((role, name), Hidden(generate_value(wanted.kind)))
        self._secrets.generate(self._site)
        return self._secrets.get(role, name)

    def certificate(self, role: str, node: Node, wanted: Certificate) -> IssuedCertificate:
        """A certificate of ``role`` for ``node``, renewed if it is due."""
        issued = self._authority.issue(role, node, wanted)
        self._handed_out(issued.key_pem)
        return issued

    def certificates(self) -> list[CertificateStatus]:
        """All certificates of the site with the time they have left."""
        return self._authority.status()

    @property
    def authority_pem(self) -> str:
        """The certificate of the site's authority."""
        return self._authority.pem

    def _authority_key(self) -> Hidden:
        key = self._secrets.get(AUTHORITY, _AUTHORITY_KEY)
        public = serialization.load_pem_private_key(key.reveal().encode(), None).public_key()
        certificate = x509.load_pem_x509_certificate(self._authority.pem.encode())
        if public != certificate.public_key():
            raise RequestError(
                f"{authority_file(self._site)} and the authority's key in {self._secrets.file} do not belong together",
                "Take both from the same commit.",
            )
        return key


def authority_file(site: Site) -> Path:
    """Where the certificate of the site's authority lies."""
    return material_folder(site) / "ca.pem"


def authority_pem(site: Site) -> str:
    """The certificate of the site's authority. Raises RequestError if there is none yet."""
    try:
        return authority_file(site).read_text()
    except FileNotFoundError:
        advice = "Make the lab first: ./mlops lab up" if site.lab else "Take ca.pem from git; ./mlops init makes it."
        raise RequestError(
            f"{authority_file(site)} does not exist, so the site has no certificate authority", advice
        ) from None


def create_material(site: Site, recipients: list[Recipient]) -> None:
    """Make what is not there yet of a site's secrets and authority. Safe to repeat after a kill at any point."""
    secrets = Secrets.of(site)
    if not secrets.file.exists():
        secrets.create(recipients)
    secrets.generate(site)
    if not secrets.has(AUTHORITY, _AUTHORITY_KEY):
        secrets.set(AUTHORITY, _AUTHORITY_KEY, new_key())
    if not authority_file(site).exists():
        pem = create_authority(site, secrets.get(AUTHORITY, _AUTHORITY_KEY))
        write_atomically(authority_file(site), pem.encode(), 0o644)


def irreplaceable(site: Site) -> set[tuple[str, str]]:
    """Role and name of the secrets that data or certificates depend on: no edit may lose or change them."""
    return {at for at, secret in declared(site).items() if not secret.rotatable} | {(AUTHORITY, _AUTHORITY_KEY)}


def renew_authority(site: Site) -> None:
    """Replace the authority, as after a change of the domain. The next deploy issues every certificate anew."""
    secrets = Secrets.of(site)
    key = new_key()
    # The certificate last: whoever is interrupted in between is told that the two do not belong together.
    secrets.set(AUTHORITY, _AUTHORITY_KEY, key)
    write_atomically(authority_file(site), create_authority(site, key).encode(), 0o644)


def ensure_lab_material(site: Site) -> Site:
    """Make what a lab's site file calls generated: identity, secrets, authority, SSH keys. Gives the site with them.

    Repeatable: what is there stays. RequestError if the site is no lab.
    """
    if site.lab is None:
        raise RequestError(f"site {site.name} is no lab", "Only a site with a `lab:` section is made on this machine.")
    private_folder(site.state)
    own = ensure_identity(identity_file(site))
    keys = LabKeys(site.name)
    ensure_key_pair(keys.user_key, f"{site.ssh.user}@{site.name}")
    for node in site.nodes:
        ensure_key_pair(keys.host_key_file(node.name), site.full_name(node))
    create_material(site, [Recipient(own.key, "this machine")])
    return load_site(site.folder)
