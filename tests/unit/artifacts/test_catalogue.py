"""The catalogue: what it refuses, and in what words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from onprem_mlops.artifacts.catalogue import FOLDER, Catalogue, GoSource, Reference
from onprem_mlops.errors import RequestError

if TYPE_CHECKING:
    from tests.unit.artifacts.conftest import Bench

_URL = {"kind": "url", "files": [{"url": "http://x.invalid/f", "sha256": "a" * 64}]}

_DEB = {"kind": "deb", "release": "bookworm", "packages": "debs/a.yaml"}

_FRONTEND = {
    "kind": "frontend",
    "module": "m",
    "path": "x.invalid/m",
    "build": ["make"],
    "tar": "a.tar",
    "folders": ["b"],
}


def refused(bench: Bench) -> str:
    with pytest.raises(RequestError) as caught:
        Catalogue.load(bench.write())
    return caught.value.message


def test_ours_is_valid_and_every_go_source_has_its_pins() -> None:
    for artifact in Catalogue.load().artifacts:
        for source in artifact.sources:
            if isinstance(source, GoSource):
                assert (FOLDER / "go" / source.module / "go.sum").stat().st_size > 0


def test_our_package_lists_give_a_reason_for_each_package() -> None:
    for path in (FOLDER / "debs").glob("*.yaml"):
        listed = YAML(typ="safe").load(path)
        assert listed and all(isinstance(why, str) and why for why in listed.values()), path


def test_our_images_are_those_that_kubeadm_asks_for() -> None:
    references = {str(a.reference()) for a in Catalogue.load().artifacts if a.image}
    assert {
        "registry.k8s.io/kube-apiserver:v1.36.3",
        "registry.k8s.io/kube-controller-manager:v1.36.3",
        "registry.k8s.io/kube-scheduler:v1.36.3",
        "registry.k8s.io/kube-proxy:v1.36.3",
        "registry.k8s.io/coredns/coredns:v1.14.2",
        "registry.k8s.io/pause:3.10.2",
        "registry.k8s.io/etcd:3.6.8-0",
    } <= references


@pytest.mark.parametrize(
    ("source", "more", "says"),
    [
        ({**_URL, "colour": "red"}, {}, "a.sources.0.url.colour: Extra inputs are not permitted"),
        ({"kind": "url", "files": []}, {}, "a.sources.0.url.files"),
        ({"kind": "url", "files": [{"url": "http://x.invalid/f"}]}, {}, "exactly one of sha256 and sha256_url"),
        (
            {"kind": "url", "files": [{"url": "http://x.invalid/f", "sha256": "a" * 64, "sha256_url": "http://x"}]},
            {},
            "exactly one of sha256 and sha256_url",
        ),
        ({"kind": "url", "files": [{"url": "http://x.invalid/f", "sha256": "abc"}]}, {}, "sha256"),
        ({"kind": "ftp"}, {}, "a.sources.0"),
        ({"kind": "go", "module": "m", "commands": {}}, {}, "commands"),
        ({"kind": "pypi", "lock": "../lock"}, {}, "relative path without '..'"),
        ({**_DEB, "apart": ["debs/a.yaml", "../a.yaml"]}, {}, "relative path without '..'"),
        ({**_FRONTEND, "folders": ["public", "../etc"]}, {}, "relative path without '..'"),
        (_FRONTEND, {}, "a: is built with Node.js, which the catalogue does not pin"),
        (_URL, {"version": "1 0"}, "a.version"),
        (_URL, {"image": "registry.k8s.io/a:1"}, "nothing else does"),
        ({"kind": "recipe"}, {}, "needs `image:"),
        ({"kind": "recipe"}, {"image": "a:1"}, "no registry/repository:tag"),
        ({"kind": "recipe", "user": "nobody"}, {"image": "x.io/a:1"}, "numeric"),
        ({"kind": "recipe"}, {"image": "x.io/a:1"}, "needs crane, which the catalogue does not have"),
    ],
)
def test_refuses(bench: Bench, source: dict[str, Any], more: dict[str, Any], says: str) -> None:
    bench.add("a", source, **more)
    assert says in refused(bench)


def test_names_every_mistake_at_once(bench: Bench) -> None:
    bench.add("a", _URL, version="1 0")
    bench.add("b", _URL, licence=3)
    message = refused(bench)
    assert "a.version" in message
    assert "b.licence" in message


def test_two_sources_of_one_kind_are_refused(bench: Bench) -> None:
    bench.add("a", _URL, _URL)
    assert "two sources of the same kind" in refused(bench)


def test_an_artifact_that_needs_itself_is_refused(bench: Bench) -> None:
    bench.add("crane", {"kind": "recipe", "files": {"/x": "registry/x"}}, image="x.io/a:1")
    bench.add("registry", _URL)
    assert "needs itself: crane → crane" in refused(bench)


def test_broken_yaml_is_named(bench: Bench) -> None:
    (bench.write() / "catalogue.yaml").write_text("artifacts: [")
    with pytest.raises(RequestError, match=r"catalogue\.yaml: cannot read"):
        Catalogue.load(bench.folder)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(RequestError) as caught:
        Catalogue.load().closure(["kubernets"])
    assert caught.value.advice == 'did you mean "kubernetes"?'


def test_inputs_come_before_what_needs_them() -> None:
    names = [a.name for a in Catalogue.load().closure(["image-calico-node"])]
    assert names[-1] == "image-calico-node"
    assert {"calico", "calico-node-files", "image-debian", "image-rootfs", "crane", "registry"} <= set(names[:-1])


def test_reference() -> None:
    assert str(Reference.parse("quay.io/calico/node:v3.31.0")) == "quay.io/calico/node:v3.31.0"
