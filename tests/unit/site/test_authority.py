"""The authority: what it issues, when it issues anew, and that real clients take it and its limits."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from onprem_mlops.errors import RequestError
from onprem_mlops.roles import Certificate
from onprem_mlops.site import Node, Recipient, Secrets, Site, SiteMaterial, ensure_lab_material
from onprem_mlops.site import authority as authority_module
from onprem_mlops.site.material import authority_file, create_material, renew_authority
from onprem_mlops.site.secrets import default_identity_file, ensure_identity

NAME = "api.plant.example.com"
WANTED = Certificate("api", dns=(NAME, "localhost"), addresses=(IPv4Address("192.0.2.11"), IPv4Address("127.0.0.1")))


@pytest.fixture
def made(site: Site) -> Site:
    create_material(site, [Recipient(ensure_identity(default_identity_file()).key, "me")])
    return site


@pytest.fixture
def node(site: Site) -> Node:
    return site.node("cp1")


@pytest.fixture
def material(made: Site) -> SiteMaterial:
    return SiteMaterial(made)


def leaf_of(chain: str) -> x509.Certificate:
    return x509.load_pem_x509_certificates(chain.encode())[0]


def test_a_leaf_says_what_was_asked(material: SiteMaterial, node: Node) -> None:
    issued = material.certificate("kubernetes", node, WANTED)
    leaf, authority = x509.load_pem_x509_certificates(issued.chain_pem.encode())
    leaf.verify_directly_issued_by(authority)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [NAME, "localhost"]
    assert names.get_values_for_type(x509.IPAddress) == list(WANTED.addresses)
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]
    assert timedelta(days=364) < issued.not_after - datetime.now(UTC) <= timedelta(days=365)
    assert issued.renewed
    assert "PRIVATE" not in repr(issued)


def test_files_are_for_the_owner_only(made: Site, material: SiteMaterial, node: Node) -> None:
    material.certificate("kubernetes", node, WANTED)
    folder = made.state / "certificates" / "cp1"
    assert {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()} == {
        "kubernetes-api.pem": 0o600,
        "kubernetes-api.key": 0o600,
    }


def test_a_second_deploy_issues_nothing_and_opens_no_secret(made: Site, material: SiteMaterial, node: Node) -> None:
    first = material.certificate("kubernetes", node, WANTED)
    Secrets.of(made).file.unlink()
    second = SiteMaterial(made).certificate("kubernetes", node, WANTED)
    assert (second.serial, second.renewed) == (first.serial, False)
    assert second.key_pem == first.key_pem


def test_a_plan_writes_nothing(made: Site, node: Node) -> None:
    before = {file: file.read_bytes() for file in _files(made)}
    planning = SiteMaterial(made, planning=True)
    issued = planning.certificate("kubernetes", node, WANTED)
    assert issued.renewed
    assert planning.certificate("kubernetes", node, WANTED) is issued
    assert {file: file.read_bytes() for file in _files(made)} == before


def test_a_plan_makes_up_a_secret_that_a_deploy_would_generate(made: Site) -> None:
    secrets = Secrets.of(made)
    secrets.edit(_empty, lambda error: False)
    before = secrets.file.read_bytes()
    planning = SiteMaterial(made, planning=True)
    assert planning.secret("storage", "root") == planning.secret("storage", "root")
    assert secrets.file.read_bytes() == before
    deploying = SiteMaterial(made)
    assert deploying.secret("storage", "root") != planning.secret("storage", "root")
    assert SiteMaterial(made).secret("storage", "root") == deploying.secret("storage", "root")
    with pytest.raises(RequestError, match="does not declare"):
        deploying.secret("storage", "nothing")


def _empty(file: Path) -> None:
    file.write_text("x: {y: z}\n")


def test_redact(made: Site, node: Node) -> None:
    material = SiteMaterial(made)
    password = material.secret("storage", "root").reveal()
    key = material.certificate("kubernetes", node, WANTED).key_pem.reveal()
    text = material.redact(f"curl -u root:{password} failed\n{key}\n{key.splitlines()[1]}")
    assert password not in text
    assert not any(line in text for line in key.splitlines()[1:-1])
    assert material.redact("nothing secret") == "nothing secret"


def _files(site: Site) -> list[Path]:
    return [file for folder in (site.folder, site.state) for file in folder.rglob("*") if file.is_file()]


# Renewal


CHANGES: dict[str, Certificate] = {
    "another name": Certificate("api", dns=(NAME, f"x.{NAME}"), addresses=WANTED.addresses),
    "another address": Certificate("api", dns=WANTED.dns, addresses=(IPv4Address("192.0.2.12"),)),
    "another usage": Certificate("api", dns=WANTED.dns, addresses=WANTED.addresses, usage="both"),
    "another life": Certificate("api", dns=WANTED.dns, addresses=WANTED.addresses, days=30),
    "another subject": Certificate("api", dns=WANTED.dns, addresses=WANTED.addresses, organizations=("ops",)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_what_is_wanted_renews(change: str, made: Site, material: SiteMaterial, node: Node) -> None:
    first = material.certificate("kubernetes", node, WANTED)
    second = SiteMaterial(made).certificate("kubernetes", node, CHANGES[change])
    assert second.renewed
    assert second.serial != first.serial


def test_a_new_authority_renews(made: Site, material: SiteMaterial, node: Node) -> None:
    first = material.certificate("kubernetes", node, WANTED)
    renew_authority(made)
    second = SiteMaterial(made).certificate("kubernetes", node, WANTED)
    assert second.serial != first.serial
    leaf, authority = x509.load_pem_x509_certificates(second.chain_pem.encode())
    leaf.verify_directly_issued_by(authority)


@pytest.mark.parametrize(
    ("passed", "renewed"), [(0, False), (200, False), (242, False), (245, True), (360, True), (500, True)]
)
def test_renewal_when_a_third_of_its_life_is_left(
    passed: int, renewed: bool, made: Site, material: SiteMaterial, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = Certificate("api", dns=(NAME,), addresses=(node.address,))
    material.certificate("kubernetes", node, declared)
    now = datetime.now(UTC) + timedelta(days=passed)

    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return now

    monkeypatch.setattr(authority_module, "datetime", Later)
    later = SiteMaterial(made)
    assert any(row.why_due for row in later.certificates() if row.node == "cp1") is renewed
    assert later.certificate("kubernetes", node, declared).renewed is renewed
    assert not SiteMaterial(made).certificate("kubernetes", node, declared).renewed


@pytest.mark.parametrize("file", ["kubernetes-api.pem", "kubernetes-api.key"])
@pytest.mark.parametrize("damage", ["", "nonsense", None])
def test_a_damaged_or_lost_file_is_replaced(
    file: str, damage: str | None, made: Site, material: SiteMaterial, node: Node
) -> None:
    material.certificate("kubernetes", node, WANTED)
    path = made.state / "certificates" / "cp1" / file
    path.unlink() if damage is None else path.write_text(damage)
    assert SiteMaterial(made).certificate("kubernetes", node, WANTED).renewed
    assert not SiteMaterial(made).certificate("kubernetes", node, WANTED).renewed


def test_a_key_of_another_certificate_is_noticed(made: Site, material: SiteMaterial, node: Node) -> None:
    material.certificate("kubernetes", node, WANTED)
    path = made.state / "certificates" / "cp1" / "kubernetes-api.key"
    key = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    assert SiteMaterial(made).certificate("kubernetes", node, WANTED).renewed


def test_list(material: SiteMaterial, node: Node) -> None:
    before = {(row.node, row.role, row.name): (row.days_left, row.why_due) for row in material.certificates()}
    assert before == {("", "", "authority"): (3649, ""), ("cp1", "kubernetes", "api"): (None, "not issued yet")}
    material.certificate("kubernetes", node, Certificate("api", dns=(NAME,), addresses=(node.address,)))
    after = {(row.node, row.role, row.name): (row.days_left, row.why_due) for row in material.certificates()}
    assert after[("cp1", "kubernetes", "api")] == (364, "")


# Limits


@pytest.mark.parametrize(
    "wanted",
    [
        Certificate("x", dns=("www.example.org",)),
        Certificate("x", dns=("evilplant.example.com",)),
        Certificate("x", addresses=(IPv4Address("198.51.100.1"),)),
    ],
)
def test_names_outside_the_site_are_not_signed(wanted: Certificate, material: SiteMaterial, node: Node) -> None:
    with pytest.raises(RequestError, match="may not sign"):
        material.certificate("kubernetes", node, wanted)


def test_a_lost_or_foreign_authority(made: Site, node: Node) -> None:
    pem = authority_file(made).read_text()
    Secrets.of(made).set("authority", "key", authority_module.new_key())
    with pytest.raises(RequestError, match="do not belong together"):
        SiteMaterial(made).certificate("kubernetes", node, WANTED)
    authority_file(made).write_text("nonsense")
    with pytest.raises(RequestError, match="is not a certificate"):
        SiteMaterial(made)
    authority_file(made).unlink()
    with pytest.raises(RequestError, match="does not exist"):
        SiteMaterial(made)
    assert pem


# Real clients


@pytest.fixture
def foreign(made: Site, tmp_path: Path) -> Path:
    """A leaf for a name outside the site, signed with the stolen key of the authority; with its key in one file."""
    stolen = serialization.load_pem_private_key(Secrets.of(made).get("authority", "key").reveal().encode(), None)
    assert isinstance(stolen, ec.EllipticCurvePrivateKey)
    authority = x509.load_pem_x509_certificate(authority_file(made).read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("www.example.org")]), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(stolen, hashes.SHA256())
    )
    pem = leaf.public_bytes(serialization.Encoding.PEM)
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = tmp_path / "foreign.pem"
    file.write_bytes(key_pem + pem)
    return file


@pytest.fixture
def bundle(material: SiteMaterial, node: Node, tmp_path: Path) -> Path:
    issued = material.certificate("kubernetes", node, WANTED)
    file = tmp_path / "bundle.pem"
    file.write_text(issued.key_pem.reveal() + issued.chain_pem)
    return file


@contextmanager
def serving(bundle: Path) -> Iterator[int]:
    """A TLS server on localhost that answers one HTTP line to everyone; gives its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(bundle)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                try:
                    with context.wrap_socket(connection, server_side=True) as tls:
                        tls.recv(1000)
                        tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                        tls.unwrap()
                except OSError:
                    connection.close()

        threading.Thread(target=answer, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


Client = Callable[[Path, str, int], bool]


def python_takes(authority: Path, name: str, port: int) -> bool:
    context = ssl.create_default_context(cafile=str(authority))
    try:
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            context.wrap_socket(plain, server_hostname=name) as tls,
        ):
            return tls.version() is not None
    except ssl.SSLCertVerificationError:
        return False


def _tool(name: str, package: str) -> str:
    return shutil.which(name) or pytest.skip(f"{name} is not here (Debian package {package})")


def curl_takes(authority: Path, name: str, port: int) -> bool:
    command = [_tool("curl", "curl"), "-sS", "--noproxy", "*", "--cacert", str(authority)]
    command += ["--resolve", f"{name}:{port}:127.0.0.1", f"https://{name}:{port}/"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def gnutls_takes(authority: Path, name: str, port: int) -> bool:
    """As apt does on Debian 12."""
    command = [_tool("gnutls-cli", "gnutls-bin"), "--x509cafile", str(authority), "--verify-hostname", name]
    command += ["--sni-hostname", name, "-p", str(port), "127.0.0.1"]
    return subprocess.run(command, input=b"GET /\n", capture_output=True, check=False).returncode == 0


GO_CLIENT = """\
package main

import ("crypto/tls"; "crypto/x509"; "os")

func main() {
	pem, _ := os.ReadFile(os.Args[1])
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	connection, err := tls.Dial("tcp", "127.0.0.1:"+os.Args[3], &tls.Config{RootCAs: pool, ServerName: os.Args[2]})
	if err != nil { os.Stderr.WriteString(err.Error()); os.Exit(1) }
	connection.Close()
}
"""


@pytest.fixture(scope="session")
def go_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.go").write_text(GO_CLIENT)
    go = _tool("go", "golang")
    binary = folder / "client"
    subprocess.run([go, "build", "-o", str(binary), str(folder / "main.go")], check=True, cwd=folder)
    return binary


@pytest.mark.parametrize("client", [python_takes, curl_takes, gnutls_takes])
def test_clients_take_ours_and_refuse_others(made: Site, bundle: Path, foreign: Path, client: Client) -> None:
    _check(authority_file(made), bundle, foreign, client)


def test_go_takes_ours_and_refuses_others(made: Site, bundle: Path, foreign: Path, go_client: Path) -> None:
    def go_takes(authority: Path, name: str, port: int) -> bool:
        command = [str(go_client), str(authority), name, str(port)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    _check(authority_file(made), bundle, foreign, go_takes)


def _check(authority: Path, bundle: Path, foreign: Path, takes: Client) -> None:
    with serving(bundle) as port:
        assert takes(authority, NAME, port)
        assert not takes(authority, "w1.plant.example.com", port)
    with serving(foreign) as port:
        assert not takes(authority, "www.example.org", port), "the authority's limits are not enforced"


def test_openssl_takes_a_client_certificate(made: Site, material: SiteMaterial, node: Node, tmp_path: Path) -> None:
    issued = material.certificate("kubernetes", node, Certificate("agent", common_name="agent", usage="client"))
    file = tmp_path / "client.pem"
    file.write_text(issued.chain_pem)
    command = [_tool("openssl", "openssl"), "verify", "-x509_strict", "-purpose", "sslclient"]
    subprocess.run([*command, "-CAfile", str(authority_file(made)), str(file)], check=True, capture_output=True)


# The lab


def test_a_lab_makes_its_material_once(site_from: Callable[[str], Site], home: Path) -> None:
    text = (Path(__file__).parent / "good.yaml").read_text()
    text = re.sub(r"host_key: .*", "host_key: generated", text).replace("~/.ssh/id_ed25519", "generated")
    text = text.replace("192.0.2.", "10.77.9.")
    lab = site_from(text + "lab:\n")
    assert {node.host_key for node in lab.nodes} == {None}
    first = ensure_lab_material(lab)
    assert len({node.host_key for node in first.nodes}) == 3
    assert {file.name for file in lab.folder.iterdir()} == {"site.yaml"}
    material = {file: file.read_bytes() for file in _files(lab)}
    assert ensure_lab_material(lab).nodes == first.nodes
    assert {file: file.read_bytes() for file in _files(lab)} == material
    private = [lab.ssh.key, *(lab.state / "ssh/host_keys" / node.name for node in lab.nodes)]
    for key in [*private, lab.state / "identity.txt", lab.state / "secrets.yaml.age"]:
        assert key.stat().st_mode & 0o777 == 0o600
    public = subprocess.run(["ssh-keygen", "-y", "-f", str(private[1])], capture_output=True, text=True, check=True)
    assert public.stdout.split()[:2] == (first.nodes[0].host_key or "").split()


def test_only_a_lab_is_made_here(site: Site) -> None:
    with pytest.raises(RequestError, match="is no lab"):
        ensure_lab_material(site)
