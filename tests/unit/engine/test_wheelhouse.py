"""Python environments, made by the very shell lines that a node runs, with the real uv, from a server with TLS."""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from onprem_mlops import wheelhouse
from onprem_mlops.artifacts import Store
from onprem_mlops.artifacts.manifest import LOCK
from onprem_mlops.errors import RequestError
from onprem_mlops.steps import PublishedFile


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        return


@dataclass
class Mirror:
    """A folder served over HTTPS, and the certificate that its clients must trust."""

    folder: Path
    authority: Path
    address: str

    def publish(self, name: str, content: bytes) -> PublishedFile:
        """Serve a file."""
        (self.folder / name).write_bytes(content)
        return PublishedFile(f"{self.address}/{name}", name, hashlib.sha256(content).hexdigest(), len(content), "1")


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    folder, authority, key_file = tmp_path / "mirror", tmp_path / "ca.pem", tmp_path / "key.pem"
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mirror")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    authority.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, key_file)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Mirror(folder, authority, f"https://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


def wheel(folder: Path, source: str) -> Path:
    """A wheel with one module."""
    path = folder / "greeting-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("greeting.py", source)
        archive.writestr("greeting-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: greeting\nVersion: 1\n")
        archive.writestr("greeting-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("greeting-1.dist-info/RECORD", "greeting.py,,\n")
    return path


@pytest.fixture
def installer(mirror: Mirror) -> list[PublishedFile]:
    """uv, as the catalogue pins it."""
    try:
        files = Store().manifest("uv").files
    except RequestError:
        pytest.skip("uv is not in the store here")
    found = next(file for file in files if file.name.endswith(".whl"))
    return [mirror.publish(found.name, Store().file("uv", found.name).path.read_bytes())]


@dataclass
class House:
    """A wheelhouse, and where its environment goes."""

    mirror: Mirror
    installer: list[PublishedFile]
    files: list[PublishedFile]
    root: Path

    @property
    def path(self) -> str:
        return wheelhouse.environment_path(str(self.root), self.files)

    @property
    def whole(self) -> bool:
        return _shell(wheelhouse.is_whole(self.path)).returncode == 0

    def build(self, *, listing: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run what the node would run."""
        text = wheelhouse.listing(self.files, self.installer) if listing is None else listing
        return _shell(wheelhouse.build(self.path, authority=str(self.mirror.authority), warm="import greeting"), text)


def _shell(command: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", command], input=given, capture_output=True, text=True, check=False)


@pytest.fixture
def house(mirror: Mirror, installer: list[PublishedFile], tmp_path: Path) -> House:
    built = wheel(tmp_path, "TEXT = 'hello'\n").read_bytes()
    lock = f"greeting==1 --hash=sha256:{hashlib.sha256(built).hexdigest()}\n"
    files = [
        mirror.publish("greeting-1-py3-none-any.whl", built),
        mirror.publish(LOCK, lock.encode()),
    ]
    return House(mirror, installer, files, tmp_path / "opt")


def test_an_environment_is_whole_and_has_its_bytecode(house: House) -> None:
    assert not house.whole
    done = house.build()
    assert done.returncode == 0, done.stderr
    assert house.whole
    said = subprocess.run(
        [f"{house.path}/bin/python", "-c", "import greeting; print(greeting.TEXT)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "hello\n"
    assert list(Path(house.path).rglob("greeting.*.pyc"))
    assert [path.name for path in house.root.iterdir()] == [Path(house.path).name]


def test_a_build_that_was_killed_begins_again(house: House) -> None:
    left = house.root / "incoming" / Path(house.path).name / "bin"
    left.mkdir(parents=True)
    (left / "python").touch()
    assert not house.whole
    assert house.build().returncode == 0
    assert house.whole
    assert not (house.root / "incoming").exists()


@pytest.mark.parametrize("harm", ["cut", "removed", "added"])
def test_harm_is_seen_and_mended(house: House, harm: str) -> None:
    house.build()
    module = next(Path(house.path).rglob("greeting.py"))
    if harm == "cut":
        module.write_text("")
    elif harm == "removed":
        module.unlink()
    else:
        module.with_name("other.py").write_text("x = 1\n")
    assert not house.whole
    assert house.build().returncode == 0
    assert house.whole


def test_another_file_than_the_store_has_is_refused_and_what_was_there_stays(house: House) -> None:
    house.build()
    wrong = wheelhouse.listing(house.files, house.installer).replace(house.files[0].sha256, "0" * 64)
    done = house.build(listing=wrong)
    assert done.returncode != 0
    assert "not the files that the lock pins" in done.stderr
    assert house.whole


def test_a_mirror_of_another_authority_is_refused(house: House, tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    house.mirror.authority = tmp_path / "empty.pem"
    assert house.build().returncode != 0
    assert not house.whole


def test_other_wheels_are_another_environment_and_the_old_one_is_found(house: House) -> None:
    house.build()
    old, house.files = house.path, [house.mirror.publish("other-1-py3-none-any.whl", b"x"), *house.files]
    assert house.path != old
    assert _shell(wheelhouse.others(house.path)).stdout.split() == [old]
    house.files = house.files[1:]
    assert _shell(wheelhouse.others(house.path)).stdout == ""
