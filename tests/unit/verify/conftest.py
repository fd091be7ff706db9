"""A site whose roles and suites are written by the test, and whose nodes nobody answers for."""

from __future__ import annotations

import datetime
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import dedent

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from onprem_mlops.plan import Phase, Use, site_roles
from onprem_mlops.site import Site, load_site
from onprem_mlops.verify.results import Check, VerifyResult
from onprem_mlops.verify.runner import verify
from onprem_mlops.verify.selection import select

SITE = """
version: 1
name: t-unit
domain: unit.mlops.test
ssh: {{user: mlops, key: generated}}
networks: {{nodes: 10.77.250.0/24}}
nodes:
  - {{name: one, address: 10.77.250.11, host_key: generated, groups: [web]}}
  - {{name: two, address: 10.77.250.12, host_key: generated, groups: [{groups}]}}
roles: [{roles}]
lab: {{bridge: br-t-unit}}
"""

CERTIFIED = "git.example.com"
"""The name that certificates of tests are for."""

SETTINGS = """
from typing import ClassVar
from onprem_mlops.roles import RoleSettings

class Settings(RoleSettings):
    \"\"\"A role of a test.\"\"\"
    groups: ClassVar[tuple[str, ...]] = ("{group}",)
"""


@pytest.fixture
def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def issue(tmp_path: Path) -> Callable[[int], Path]:
    """Makes a certificate for the name, with its key, that is good for a number of days."""

    def issue(days: int) -> Path:
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, CERTIFIED)])
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=days, minutes=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(CERTIFIED)]), critical=False)
            .sign(key, hashes.SHA256())
        )
        pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
        chain = tmp_path / "chain.pem"
        chain.write_bytes(
            certificate.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none)
        )
        return chain

    return issue


MakeSite = Callable[[Mapping[str, tuple[str, str]]], Site]


@pytest.fixture
def make_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeSite:
    """A lab that was never up, with roles of its own: name → (group, text of its suite)."""
    monkeypatch.setenv("MLOPS_STATE", str(tmp_path / "state"))

    def make(suites: Mapping[str, tuple[str, str]]) -> Site:
        for name, (group, suite) in suites.items():
            folder = tmp_path / "roles" / name
            (folder / "verify").mkdir(parents=True)
            (folder / "settings.py").write_text(SETTINGS.format(group=group))
            head = "from onprem_mlops.verify.suite import *\nimport pytest\n"
            (folder / "verify" / f"test_{name}.py").write_text(head + dedent(suite))
        groups = ", ".join(dict.fromkeys(["web", *(group for group, _ in suites.values())]))
        text = SITE.format(groups=groups, roles=", ".join(suites))
        (tmp_path / "site.yaml").write_text(text)
        return load_site(tmp_path)

    return make


def phase(site: Site) -> Phase:
    """A phase of all the site's own roles."""
    return Phase("testing", "0", "a test", tuple(Use(name) for name in site.roles))


def verified(site: Site) -> tuple[VerifyResult, dict[str, Check]]:
    """Verify everything; the result, and the checks by their sentence."""
    units = select(site, site_roles(site), [phase(site)], phase_suites=site.folder / "phases")
    result = verify(site, units, ["testing"], workers=2)
    return result, {check.name: check for check in result.checks}
