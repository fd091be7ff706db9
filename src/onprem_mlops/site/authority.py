"""The site's certificate authority and the leaf certificates it issues.

Keys are ECDSA P-256: kubeadm, Go, OpenSSL, GnuTLS (apt) and Java take it, which is not true of Ed25519.

The authority is constrained by name (RFC 5280, critical) to the site's domain, the cluster's own names and the site's
networks: someone who steals its key cannot pose as any other host to machines that trust it. Go, OpenSSL and GnuTLS
enforce these constraints. OpenSSL applies them to the common name too where a certificate has no DNS name, so every
leaf has one.
"""

from __future__ import annotations

import secrets as random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from onprem_mlops.atomic import write_atomically
from onprem_mlops.errors import RequestError
from onprem_mlops.site.hidden import Hidden
from onprem_mlops.site.model import Node, Site
from onprem_mlops.site.role import Certificate
from onprem_mlops.site.safe_file import private_folder

AUTHORITY_DAYS = 3650
RENEW_AT = 1 / 3
"""A leaf is renewed when this part of its life is left."""

CLUSTER_NAMES = ("svc", "cluster.local", "localhost")
"""DNS names inside every cluster, beside the site's own domain, that the authority may sign."""

_BACKDATED = timedelta(hours=1)
"""Nodes whose clock is a little behind must not refuse a fresh certificate."""

_USAGES = {
    "server": [ExtendedKeyUsageOID.SERVER_AUTH],
    "client": [ExtendedKeyUsageOID.CLIENT_AUTH],
    "both": [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
}


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


@dataclass(frozen=True)
class CertificateStatus:
    """One certificate as ``./mlops certs list`` shows it."""

    node: str
    """Empty for the authority itself."""
    role: str
    name: str
    not_after: datetime | None
    """None if it was not issued on this machine yet."""
    why_due: str
    """Why the next deploy issues it anew; empty if it does not."""

    @property
    def days_left(self) -> int | None:
        """Whole days until it ends, negative when it has ended."""
        return None if self.not_after is None else (self.not_after - datetime.now(UTC)).days


def new_key() -> Hidden:
    """A fresh private key, PKCS #8 in PEM."""
    return _key_pem(ec.generate_private_key(ec.SECP256R1()))


def create_authority(site: Site, key_pem: Hidden) -> str:
    """The certificate (PEM) of an authority for ``site``, signed with its own key."""
    key = _load_key(key_pem)
    # A part that is random: two authorities of one site, one after the other, must not look the same to a client.
    title = f"{site.name} authority {random.token_hex(4)}"
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, title)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_name_constraints(site), critical=True)
    )
    return _pem(builder.sign(key, hashes.SHA256()))


def _name_constraints(site: Site) -> x509.NameConstraints:
    names = [x509.DNSName(name) for name in (site.domain, *CLUSTER_NAMES)]
    networks = (site.networks.nodes, site.networks.services, IPv4Network("127.0.0.0/8"))
    return x509.NameConstraints([*names, *(x509.IPAddress(network) for network in networks)], None)


class Authority:
    """Issues leaf certificates and remembers them in ``folder`` (``<node>/<role>-<name>.pem`` and ``.key``).

    ``key`` is asked for the private key only when something must be signed, so that a deploy with nothing to renew
    does not open the secrets. With ``planning`` nothing is written: what is due is issued in memory.
    """

    def __init__(self, site: Site, pem: str, key: Callable[[], Hidden], folder: Path, *, planning: bool) -> None:
        self.pem = pem
        self._site = site
        self._certificate = x509.load_pem_x509_certificate(pem.encode())
        self._key = key
        self._folder = folder
        self._planning = planning
        self._issued: dict[tuple[str, str, str], tuple[Certificate, IssuedCertificate]] = {}

    def issue(self, role: str, node: Node, wanted: Certificate) -> IssuedCertificate:
        """The certificate that ``role`` wants on ``node``: the one there is, or a new one if that is due.

        RequestError if the authority may not sign one of its names.
        """
        at = (node.name, role, wanted.name)
        if at in self._issued and self._issued[at][0] == wanted:
            return self._issued[at][1]
        if self.would_renew(role, node, wanted):
            issued = self._sign(role, node, wanted)
        else:
            issued = self._present(*self._files(role, node, wanted))
        self._issued[at] = (wanted, issued)
        return issued

    def would_renew(self, role: str, node: Node, wanted: Certificate) -> str:
        """Why a deploy issues this certificate anew; empty if it does not."""
        pem_file, key_file = self._files(role, node, wanted)
        if not pem_file.is_file() or not key_file.is_file():
            return "not issued yet"
        try:
            leaf = x509.load_pem_x509_certificate(pem_file.read_bytes())
            key = _load_key(Hidden(key_file.read_text()))
        except (ValueError, TypeError):
            return "its file is damaged"
        if _public_bytes(leaf.public_key()) != _public_bytes(key.public_key()):
            return "its key belongs to another certificate"
        return self._why_unfit(leaf, node, wanted)

    def _why_unfit(self, leaf: x509.Certificate, node: Node, wanted: Certificate) -> str:
        try:
            leaf.verify_directly_issued_by(self._certificate)
        except (ValueError, InvalidSignature):
            return "the authority has changed"
        capped = leaf.not_valid_after_utc == self._certificate.not_valid_after_utc
        if _essence(leaf, wanted.days if capped else None) != _essence_wanted(self._site, node, wanted):
            return "its names, its usage or its life changed"
        left = leaf.not_valid_after_utc - datetime.now(UTC)
        life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
        if left <= life * RENEW_AT:
            return f"{max(left.days, 0)} days left of {life.days}"
        return ""

    def status(self) -> list[CertificateStatus]:
        """Every certificate that roles which are on want, and the authority's own, first to end first."""
        own = self._certificate.not_valid_after_utc
        rows = [CertificateStatus("", "", "authority", own, _authority_due(own))]
        for node, role, wanted in wanted_certificates(self._site):
            rows.append(
                CertificateStatus(
                    node.name,
                    role,
                    wanted.name,
                    self._end(role, node, wanted),
                    self.would_renew(role, node, wanted),
                )
            )
        never = datetime.max.replace(tzinfo=UTC)
        return sorted(rows, key=lambda row: (row.not_after or never, row.node, row.role, row.name))

    def _end(self, role: str, node: Node, wanted: Certificate) -> datetime | None:
        try:
            pem = self._files(role, node, wanted)[0].read_bytes()
            return x509.load_pem_x509_certificate(pem).not_valid_after_utc
        except (OSError, ValueError):
            return None

    def _files(self, role: str, node: Node, wanted: Certificate) -> tuple[Path, Path]:
        stem = self._folder / node.name / f"{role}-{wanted.name}"
        return stem.with_name(stem.name + ".pem"), stem.with_name(stem.name + ".key")

    def _present(self, pem_file: Path, key_file: Path) -> IssuedCertificate:
        pem = pem_file.read_text()
        leaf = x509.load_pem_x509_certificate(pem.encode())
        return IssuedCertificate(
            pem + self.pem, Hidden(key_file.read_text()), leaf.not_valid_after_utc, leaf.serial_number, renewed=False
        )

    def _sign(self, role: str, node: Node, wanted: Certificate) -> IssuedCertificate:
        self._refuse_foreign_names(role, node, wanted)
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._leaf(key.public_key(), node, wanted)
        leaf = builder.sign(_load_key(self._key()), hashes.SHA256())
        pem, key_pem = _pem(leaf), _key_pem(key)
        if not self._planning:
            pem_file, key_file = self._files(role, node, wanted)
            private_folder(pem_file.parent)
            # A kill between the two leaves a pair that does not match, which the next deploy notices and replaces.
            write_atomically(key_file, key_pem.reveal().encode())
            write_atomically(pem_file, pem.encode())
        return IssuedCertificate(pem + self.pem, key_pem, leaf.not_valid_after_utc, leaf.serial_number, renewed=True)

    def _leaf(self, public: ec.EllipticCurvePublicKey, node: Node, wanted: Certificate) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        end = min(now + timedelta(days=wanted.days), self._certificate.not_valid_after_utc)
        identifier = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
        return (
            x509.CertificateBuilder()
            .subject_name(_subject(self._site, node, wanted))
            .issuer_name(self._certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(_USAGES[wanted.usage]), critical=False)
            .add_extension(_alternative_names(self._site, node, wanted), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(issuer, critical=False)
        )

    def _refuse_foreign_names(self, role: str, node: Node, wanted: Certificate) -> None:
        constraints = self._certificate.extensions.get_extension_for_class(x509.NameConstraints).value
        permitted = constraints.permitted_subtrees or []
        foreign = [name for name in _alternative_names(self._site, node, wanted) if not _within(name, permitted)]
        if foreign:
            names = ", ".join(str(name.value) for name in foreign)
            raise RequestError(
                f"the site's authority may not sign {names} (certificate {wanted.name} of role {role})",
                "It is limited to the domain and networks the site had when it was made. "
                "After a change of those, make a new authority with ./mlops certs renew-authority.",
            )


def wanted_certificates(site: Site) -> Iterable[tuple[Node, str, Certificate]]:
    """Every certificate that roles which are on want, on the nodes they run on."""
    for role, settings in site.role_settings.items():
        for node in site.in_group(*settings.groups, *settings.optional_groups):
            for wanted in settings.certificates(site, node):
                yield node, role, wanted


def _authority_due(end: datetime) -> str:
    left = (end - datetime.now(UTC)).days
    return f"ends in {left} days: make a new authority" if left < AUTHORITY_DAYS * RENEW_AT / 4 else ""


def _within(name: x509.GeneralName, permitted: Iterable[x509.GeneralName]) -> bool:
    for subtree in permitted:
        if isinstance(name, x509.DNSName) and isinstance(subtree, x509.DNSName):
            if f".{name.value}".endswith(f".{subtree.value}"):
                return True
        elif (
            isinstance(name, x509.IPAddress)
            and isinstance(subtree, x509.IPAddress)
            and isinstance(subtree.value, IPv4Network)
            and isinstance(name.value, IPv4Address)
            and name.value in subtree.value
        ):
            return True
    return False


def _subject(site: Site, node: Node, wanted: Certificate) -> x509.Name:
    dns = wanted.dns or (site.full_name(node),)
    # X.520 limits a common name to 64 characters; clients look at the alternative names anyway.
    common_name = (wanted.common_name or dns[0])[:64]
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in wanted.organizations]
    return x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alternative_names(site: Site, node: Node, wanted: Certificate) -> x509.SubjectAlternativeName:
    dns = wanted.dns or (site.full_name(node),)
    return x509.SubjectAlternativeName(
        [*(x509.DNSName(name) for name in dns), *(x509.IPAddress(address) for address in wanted.addresses)]
    )


_Essence = tuple[x509.Name, x509.SubjectAlternativeName, x509.ExtendedKeyUsage, int]


def _essence(leaf: x509.Certificate, days: int | None) -> _Essence:
    """What must not differ between the certificate there is and the one that is wanted.

    ``days``: its life if the certificate does not show it, because the authority ends first.
    """
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc - _BACKDATED
    return (
        leaf.subject,
        leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value,
        leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value,
        days or round(life / timedelta(days=1)),
    )


def _essence_wanted(site: Site, node: Node, wanted: Certificate) -> _Essence:
    return (
        _subject(site, node, wanted),
        _alternative_names(site, node, wanted),
        x509.ExtendedKeyUsage(_USAGES[wanted.usage]),
        wanted.days,
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> Hidden:
    return Hidden(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
    )


def _load_key(pem: Hidden) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem.reveal().encode(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("not an elliptic curve key")
    return key


def _public_bytes(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return b""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
