"""Whatever stands in a site file, the answer is a site or problems with places: never a traceback."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from onprem_mlops.errors import RequestError
from onprem_mlops.roles import Role
from onprem_mlops.site import Site, SiteError, load_site

RICH = """\
description: everything there is
apt: {mirror: "http://deb.example.com/debian", proxy: "http://proxy.example.com:3128"}
roles: [node, containerd, kubernetes, storage, monitoring]
lab: {bridge: br-x}
settings:
  node: {time_servers: [10.77.9.1]}
  kubernetes: {max_pods: 100, feature_gates: {Sidecars: true}}
  storage: {volumes: [{name: data, copies: 2}], upstream_password: short}
  monitoring: {retention: 30}
"""
STRANGE: list[object] = [
    None, True, -1, 10**30, "", "x", "X" * 300, "0.0.0.0/0", "\x1b[31m\n", [], [None], ["x", "x"], {}, {"": {}},
]  # fmt: skip


def places(value: object, way: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in a document."""
    yield way
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*way, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, (*way, index))


def with_change(document: Any, way: tuple[str | int, ...], change: Callable[[Any, Any], None]) -> str:
    """The document as YAML, changed at one place."""
    changed = copy.deepcopy(document)
    parent = changed
    for step in way[:-1]:
        parent = parent[step]
    change(parent, way[-1])
    # JSON is YAML, and much faster to write.
    return json.dumps(changed)


@pytest.fixture
def document() -> Any:
    good = (Path(__file__).parent / "good.yaml").read_text().replace("192.0.2.", "10.77.9.")
    extra = "    labels: {zone: a}\n    taints: ['a=b:NoExecute']\n    release: 12\n    facts:\n"
    extra += "      disks: [{device: /dev/sdb, size: 1T, kind: ssd}]\n      gpus: [{model: L4, count: 1}]\n"
    return YAML(typ="safe", pure=True).load(good + extra + RICH)


def loaded(text: str, folder: Path, roles: Mapping[str, Role]) -> Site | None:
    """The site, or None after checking that what is wrong is said as it should be."""
    (folder / "site.yaml").write_text(text, encoding="utf-8")
    try:
        return load_site(folder, roles)
    except SiteError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.line >= 1
            assert problem.column >= 1
            assert problem.message.isprintable()
            assert len(problem.message) < 500, problem.message
        return None


@pytest.mark.parametrize("strange", STRANGE, ids=lambda value: repr(value)[:20])
def test_a_strange_value_anywhere(strange: object, document: Any, tmp_path: Path, roles: Mapping[str, Role]) -> None:
    for way in list(places(document))[1:]:
        loaded(with_change(document, way, lambda parent, key: parent.__setitem__(key, strange)), tmp_path, roles)


def test_anything_missing(document: Any, tmp_path: Path, roles: Mapping[str, Role]) -> None:
    for way in list(places(document))[1:]:
        loaded(with_change(document, way, lambda parent, key: parent.__delitem__(key)), tmp_path, roles)


def test_a_file_cut_off_anywhere(tmp_path: Path, roles: Mapping[str, Role]) -> None:
    text = (Path(__file__).parent / "good.yaml").read_text() + RICH
    for end in range(0, len(text), 23):
        loaded(text[:end], tmp_path, roles)


def test_the_document_itself_is_right(document: Any, tmp_path: Path, roles: Mapping[str, Role]) -> None:
    text = with_change(document, ("name",), lambda parent, key: parent.__setitem__(key, "plant"))
    assert loaded(text, tmp_path, roles) is not None


def test_a_folder_instead_of_a_file(tmp_path: Path, roles: Mapping[str, Role]) -> None:
    (tmp_path / "site.yaml").mkdir()
    with pytest.raises(RequestError, match="cannot be read"):
        load_site(tmp_path, roles)
