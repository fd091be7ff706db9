"""The mirror as its clients find it: TLS, files, packages, images; and that nobody can change what it serves."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterator

import pytest

from onprem_mlops.artifacts import Store
from onprem_mlops.artifacts.publish import needed_by
from onprem_mlops.verify.suite import (
    Controller,
    DoesNotApply,
    NodeHost,
    Nodes,
    Site,
    assert_certificate,
    assert_old_tls_is_refused,
    listeners,
)
from roles.mirror.settings import Settings

MANIFEST_TYPES = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
MANIFEST_TYPES += ", application/vnd.oci.image.index.v1+json"


@pytest.fixture(scope="module")
def host(site: Site, settings: Settings, nodes: Nodes) -> NodeHost:
    """The node that serves the mirror."""
    return nodes[settings.host(site).name]


@pytest.fixture(scope="module")
def url(site: Site, settings: Settings) -> str:
    """Where the mirror answers."""
    return site.mirror_url


def test_certificate(site: Site, settings: Settings, controller: Controller, host: NodeHost) -> None:
    """The mirror's certificate is signed by the site's authority, has its name, and is good for weeks.

    `./mlops deploy --role mirror` renews a certificate that is due.
    """
    assert_certificate(controller, host, settings.port, site.mirror_name)


def test_old_tls_is_refused(site: Site, settings: Settings, controller: Controller, host: NodeHost) -> None:
    """TLS 1.1 and older is refused."""
    assert_old_tls_is_refused(controller, host, settings.port, site.mirror_name)


def test_other_names_are_refused(site: Site, settings: Settings, controller: Controller, host: NodeHost) -> None:
    """The mirror cannot pose as another host of the site."""
    with pytest.raises(ssl.SSLCertVerificationError):
        controller.handshake(host.address, settings.port, f"git.{site.domain}")


def test_file_is_whole(site: Site, controller: Controller, url: str) -> None:
    """A file that the mirror serves is the one in the artifact store, bit by bit."""
    served = [file for file in Store().tree(needed_by(site)) if str(file.path).startswith("files/")]
    one = min(served, key=lambda file: file.size)
    answer = controller.get(f"{url}/{one.path}")
    assert answer.status == 200, f"{url}/{one.path}: HTTP {answer.status}"
    found = hashlib.sha256(answer.body).hexdigest()
    assert found == one.sha256, f"{url}/{one.path} has sha256 {found}, the store has {one.sha256}"


def test_nothing_is_missing(site: Site, host: NodeHost, settings: Settings) -> None:
    """All that the site's roles lay down is on the mirror's disk.

    `./mlops deploy --role mirror` carries over what is missing or damaged.
    """
    found = set(host.lines("cd %s && find -L . -type f -printf '%%P\\n'", f"{settings.root}/current"))
    missing = sorted({str(file.path) for file in Store().tree(needed_by(site))} - found)
    assert not missing, f"{host.name}: missing: {', '.join(missing[:8])}"


@pytest.mark.limit(180)
def test_nothing_is_damaged(host: NodeHost, settings: Settings) -> None:
    """Every file on the mirror's disk is the one in the artifact store.

    `./mlops deploy --role mirror` carries over what is missing or damaged.
    """
    wanted = {str(file.path): file.sha256 for file in Store().tree()}
    found = dict(_checksums(host, f"{settings.root}/current"))
    unknown = [path for path in found if path not in wanted]
    # What a role that is now off once laid down may still be there, and must be right.
    wrong = [path for path, digest in found.items() if path in wanted and wanted[path] != digest]
    assert not wrong, f"{host.name}: damaged: {', '.join(wrong[:8])}"
    assert not unknown, f"{host.name}: not from the store: {', '.join(unknown[:8])}"


# openssl uses the processor's instructions for it, at a seventh of the time. Both print a checksum, a blank, a sign for
# how the file was read, and its name; openssl in pieces, so that two at once would be mixed up.
_SHA256 = "$(command -v openssl >/dev/null && echo openssl dgst -sha256 -r || echo sha256sum)"


def _checksums(host: NodeHost, folder: str) -> Iterator[tuple[str, str]]:
    listed = host.run(f"cd %s && find -L . -type f -print0 | xargs -0 -r -n 64 {_SHA256}", folder, timeout=170)
    assert listed.rc == 0, f"{host.name}: {listed.stderr.strip()[-300:]}"
    for line in listed.stdout.splitlines():
        digest, _, path = line.partition(" ")
        yield path[1:].removeprefix("./"), digest


def test_image_can_be_pulled(site: Site, controller: Controller, url: str) -> None:
    """An image comes from the mirror's registry whole, as the digests in its manifest say."""
    if "image-pause" not in needed_by(site):
        raise DoesNotApply("no role that is on lays down an image")
    name, _, tag = Store().image("image-pause").partition(":")
    base = f"{url}/v2/{name}"
    answer = controller.request("GET", f"{base}/manifests/{tag}", headers={"Accept": MANIFEST_TYPES})
    assert answer.status == 200, f"{base}/manifests/{tag}: HTTP {answer.status} {answer.text[:200]}"
    digest = "sha256:" + hashlib.sha256(answer.body).hexdigest()
    assert answer.headers.get("docker-content-digest") == digest, (
        f"{base}/manifests/{tag}: its digest is not its content's"
    )
    wanted = answer.json["config"]["digest"]
    config = controller.get(f"{base}/blobs/{wanted}")
    found = "sha256:" + hashlib.sha256(config.body).hexdigest()
    assert found == wanted, f"{base}/blobs/{wanted}: HTTP {config.status}, content has {found}"


@pytest.mark.parametrize(
    "method, path",
    [
        ("POST", "/v2/onprem.local/verify/blobs/uploads/"),
        ("DELETE", "/v2/registry.k8s.io/pause/manifests/latest"),
        ("PUT", "/files/verify"),
    ],
)
def test_nobody_can_push(controller: Controller, url: str, method: str, path: str) -> None:
    """Nobody can change what the mirror serves over the network."""
    answer = controller.request(method, f"{url}{path}")
    assert answer.status in (401, 403, 405), f"{method} {url}{path}: HTTP {answer.status} {answer.text[:200]}"


def test_registry_itself_is_read_only(host: NodeHost, settings: Settings) -> None:
    """Not even from its own node can anybody push an image past the front door."""
    path = f"http://127.0.0.1:{settings.registry_port}/v2/onprem.local/verify/blobs/uploads/"
    said = host.run("curl -s -o /dev/null -w '%%{http_code}' --max-time 5 -X POST %s", path)
    assert said.stdout in ("403", "405"), f"{host.name}: POST {path} answers {said.stdout or said.stderr}"


def test_services_are_nobody(host: NodeHost, settings: Settings) -> None:
    """The mirror's services run as accounts of their own, which can write nothing that is served."""
    wanted = {settings.port: "the web server", settings.registry_port: "the registry"}
    found = {one.port: one for one in listeners(host) if one.port in wanted and one.protocol == "tcp"}
    missing = [what for port, what in wanted.items() if port not in found]
    assert not missing, f"{host.name}: nobody listens for {', '.join(missing)}"
    for port, what in wanted.items():
        pid = str(found[port].pid)
        users = set(host.lines("ps -o user:32= -p %s --ppid %s | tr -d ' '", pid, pid))
        assert users and "root" not in users, (
            f"{host.name}: {what} runs as {', '.join(users) or 'nobody that can be seen'}"
        )
        for user in users:
            writable = host.lines(
                "setpriv --reuid=%s --regid=%s --clear-groups "
                "find -L %s /etc/onprem-mirror -writable 2>/dev/null | head -3",
                user,
                user,
                settings.root,
            )
            assert not writable, f"{host.name}: {what} ({user}) can write {', '.join(writable)}"


def test_key_is_private(host: NodeHost) -> None:
    """The mirror's private key can be read by the web server's account only."""
    said = host.lines("find /etc/onprem-mirror -name '*key*' -printf '%p %m %u\\n'")
    assert said, f"{host.name}: no key in /etc/onprem-mirror"
    wrong = [line for line in said if line.split()[1:] != ["400", "onprem-mirror"]]
    assert not wrong, f"{host.name}: {'; '.join(wrong)}"
