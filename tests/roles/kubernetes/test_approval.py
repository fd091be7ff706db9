"""The script that approves serving certificates, with a real openssl and a kubectl that answers from data."""

from __future__ import annotations

import base64
import os
import subprocess
from ipaddress import IPv4Address
from pathlib import Path

import jinja2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from onprem_mlops.paths import REPOSITORY

TEMPLATE = REPOSITORY / "roles/kubernetes/templates/approve-kubelet-certificates.j2"
KUBECTL = """#!/bin/sh
if [ "$1" = get ]; then cat "$HERE/requests"; else echo "$3" >>"$HERE/approved"; fi
"""


def _request(
    name: str = "w1",
    organization: str = "system:nodes",
    alternatives: tuple[x509.GeneralName, ...] = (x509.DNSName("w1"), x509.IPAddress(IPv4Address("192.0.2.21"))),
    *,
    more: x509.ExtensionType | None = None,
) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
        x509.NameAttribute(NameOID.COMMON_NAME, f"system:node:{name}"),
    ]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    if more is not None:
        builder = builder.add_extension(more, critical=False)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return base64.b64encode(pem).decode()


def _run(
    tmp_path: Path,
    request: str,
    *,
    user: str = "system:node:w1",
    groups: str = "system:nodes,system:authenticated,",
    usages: str = "digital signature,server auth,",
) -> list[str]:
    """Names of the requests that the script approved."""
    script = jinja2.Template(TEMPLATE.read_text(), keep_trailing_newline=True).render(policies=str(tmp_path))
    script = script.replace("PATH=/usr/local/bin", f"PATH={tmp_path}")
    (tmp_path / "nodes").write_text("c1 192.0.2.11\nw1 192.0.2.21\n")
    (tmp_path / "requests").write_text(f"csr-1|{user}|{groups}|{usages}|{request}\n")
    (tmp_path / "kubectl").write_text(KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    (tmp_path / "approve").write_text(script)
    subprocess.run(["/bin/sh", tmp_path / "approve"], check=True, env={**os.environ, "HERE": str(tmp_path)})
    approved = tmp_path / "approved"
    return approved.read_text().split() if approved.exists() else []


def test_a_node_that_asks_for_itself_is_approved(tmp_path: Path) -> None:
    assert _run(tmp_path, _request()) == ["csr-1"]


@pytest.mark.parametrize(
    ("request_text", "how"),
    [
        (_request(), {"user": "system:node:c1"}),
        (_request(), {"user": "w1"}),
        (_request("w9"), {"user": "system:node:w9"}),
        (_request(), {"groups": "system:authenticated,"}),
        (_request(), {"usages": "digital signature,client auth,"}),
        (_request(), {"usages": "digital signature,server auth,client auth,"}),
        (_request(organization="system:masters"), {}),
        (_request("c1"), {}),
        (_request(alternatives=()), {}),
        (_request(alternatives=(x509.DNSName("w1"), x509.IPAddress(IPv4Address("192.0.2.11")))), {}),
        (_request(alternatives=(x509.DNSName("api"), x509.IPAddress(IPv4Address("192.0.2.21")))), {}),
        (
            _request(alternatives=(x509.DNSName("w1"), x509.DNSName("api"), x509.IPAddress(IPv4Address("192.0.2.21")))),
            {},
        ),
        (_request(more=x509.BasicConstraints(ca=True, path_length=None)), {}),
        (base64.b64encode(b"nonsense").decode(), {}),
    ],
    ids=[
        "of another node",
        "of no node",
        "of a node that is not in the site file",
        "of nobody in the nodes' group",
        "to be a client",
        "to be a client too",
        "as an administrator",
        "for another node's name",
        "without names",
        "for another node's address",
        "for another name",
        "for one name more",
        "to be an authority",
        "that is none",
    ],
)
def test_any_other_request_is_left_alone(tmp_path: Path, request_text: str, how: dict[str, str]) -> None:
    assert _run(tmp_path, request_text, **how) == []
