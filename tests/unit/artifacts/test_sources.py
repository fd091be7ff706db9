"""Checksum files, package lists, schedule, and images made with the real tools where they are built."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from onprem_mlops.artifacts import Artifact, Catalogue, Store
from onprem_mlops.artifacts.schedule import Schedule, ranks
from onprem_mlops.artifacts.sources.debian import mirrors, signing_key
from onprem_mlops.artifacts.sources.url import checksum_in
from onprem_mlops.errors import MlopsError, RequestError

if TYPE_CHECKING:
    from tests.unit.artifacts.conftest import Bench

_A, _B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        (_A, _A),
        (f"{_A}  tool\n", _A),
        (f"{_B}  other\n{_A} *tool\n", _A),
        (f"{_A.upper()}  tool\n", _A),
        (f"{_A}  built/elsewhere\n", _A),
    ],
)
def test_checksum_files(text: str, digest: str) -> None:
    assert checksum_in(text, "tool") == digest


@pytest.mark.parametrize("text", ["", "nothing here", f"{_A}  x\n{_B}  y\n", f"{_A}  tool\n{_B}  tool\n"])
def test_a_checksum_file_that_does_not_say(text: str) -> None:
    with pytest.raises(MlopsError, match="does not name tool"):
        checksum_in(text, "tool")


APT_SAYS = {
    "debian": """\
'http://debian.example.com/debian/dists/bookworm/InRelease' debian.example.com_debian_dists_bookworm_InRelease 0
'http://debian.example.com/debian/dists/bookworm-updates/InRelease' debian.example.com_debian_dists_bookworm-updates 0
'https://security.example.com/debian-security/dists/bookworm-security/InRelease' security.example.com_debian 0
'https://tools.example.com/apt/dists/nodistro/InRelease' tools.example.com_apt_dists_nodistro_InRelease 0
""",
    "no security": "'http://debian.example.com/debian/dists/trixie/InRelease' debian.example.com_debian 0\n",
    "ubuntu": "'http://ubuntu.example.com/ubuntu/dists/noble/InRelease' ubuntu.example.com_ubuntu 0\n",
    "a list of mirrors": "'mirror+file:/etc/apt/mirrors.list/dists/bookworm/InRelease' _etc_apt_mirrors.list 0\n",
}
"""What `apt-get update --print-uris` prints, by machine."""


@pytest.fixture
def apt_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    """An apt-get that names the archives of some machine."""
    (tmp_path / "said").write_text(APT_SAYS[machine])
    (tmp_path / "apt-get").write_text(f'#!/bin/sh\n[ "$*" = "-q update --print-uris" ] && cat {tmp_path}/said\n')
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("MLOPS_DEBIAN_MIRROR", raising=False)


@pytest.mark.usefixtures("apt_says")
@pytest.mark.parametrize(
    ("machine", "found"),
    [
        ("debian", ("http://debian.example.com/debian", "https://security.example.com/debian-security")),
        ("no security", ("http://debian.example.com/debian", "http://debian.example.com/debian-security")),
    ],
)
def test_debian_comes_from_where_this_machine_gets_it(found: tuple[str, str]) -> None:
    assert mirrors() == found


@pytest.mark.usefixtures("apt_says")
@pytest.mark.parametrize("machine", ["ubuntu", "a list of mirrors"])
def test_without_a_source_of_debian_one_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="no source of Debian's bookworm or trixie") as caught:
        mirrors()
    assert "MLOPS_DEBIAN_MIRROR" in caught.value.advice
    monkeypatch.setenv("MLOPS_DEBIAN_MIRROR", "http://own.example.com/debian")
    assert mirrors() == ("http://own.example.com/debian", "http://own.example.com/debian-security")


def test_the_longest_way_starts_first() -> None:
    artifacts = Catalogue.load().closure(None)
    rank = ranks(artifacts)
    assert max(rank, key=lambda name: rank[name]) == "kubernetes"
    schedule = Schedule(artifacts, lambda artifact: True)
    first = schedule.next()
    assert first is not None
    assert first.name == "kubernetes"


def test_what_needs_a_failed_one_never_starts() -> None:
    artifacts = Catalogue.load().closure(["image-pause"])
    schedule = Schedule(artifacts, lambda artifact: False)
    started: list[Artifact] = []
    while artifact := schedule.next():
        started.append(artifact)
    assert "image-pause" not in [artifact.name for artifact in started]
    for artifact in started:
        schedule.done(artifact, made=artifact.name != "pause")
    assert schedule.next() is None


def test_the_signing_key_is_made_once_and_private(tmp_path: Path) -> None:
    first, second = signing_key(tmp_path / "keys"), signing_key(tmp_path / "keys")
    assert str(first.extract_certificate()) == str(second.extract_certificate())
    assert (tmp_path / "keys" / "apt.pgp").stat().st_mode & 0o777 == 0o600


def test_an_image_is_the_same_each_time_and_its_config_is_as_written(bench: Bench) -> None:
    real = Store()
    try:
        tools = {name: real.file(name, name).path for name in ("crane", "registry")}
    except RequestError:
        pytest.skip("crane and registry are not built here")
    for name, path in tools.items():
        file = {"url": path.as_uri(), "sha256": path.name, "name": name, "executable": True}
        bench.add(name, {"kind": "url", "files": [file]})
    text = {"/etc/motd": {"text": "hello\n"}}
    recipe = {"kind": "recipe", "text": text, "entrypoint": ["/x", "-a,b"], "user": "999", "env": {"A": "1"}}
    bench.add("image-base", recipe, image="onprem.local/base:{version}")
    bench.add("image-top", {"kind": "recipe", "base": "image-base", "cmd": ["run"]}, image="onprem.local/top:1")
    store = bench.store()
    store.ensure()
    first = store.manifest("image-top")
    assert store.image("image-base") == "onprem.local/base:1.0"
    store.ensure(again=["image-base", "image-top"])
    assert store.manifest("image-top").files == first.files
    paths = [str(file.path) for file in store.tree(["image-top"])]
    assert "registry/docker/registry/v2/repositories/onprem.local/top/_manifests/tags/1/current/link" in paths
    assert not [path for path in paths if "onprem.local/base" in path]


def test_a_wheelhouse_has_the_wheels_for_the_nodes_whatever_this_machine_is(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    index.mkdir()
    tags = ("cp311-cp311-manylinux_2_28_x86_64", "cp313-cp313-manylinux_2_28_x86_64", "cp311-cp311-macosx_14_0_arm64")
    lines = ["a==1"]
    for tag in tags:
        wheel = index / f"a-1-{tag}.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("a-1.dist-info/METADATA", f"Metadata-Version: 2.1\nName: a\nVersion: 1\nSummary: {tag}\n")
            archive.writestr("a-1.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n")
            archive.writestr("a-1.dist-info/RECORD", "")
        lines.append(f"--hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}")
    bench.add("house", {"kind": "pypi", "lock": "house.lock"})
    bench.write().joinpath("house.lock").write_text(" \\\n    ".join(lines) + "\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    store = bench.store()
    store.ensure()
    assert [file.name for file in store.manifest("house").files] == [f"a-1-{tags[0]}.whl", "requirements.lock"]
