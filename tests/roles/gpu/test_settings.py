"""What the role declares, and what it refuses in a site file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onprem_mlops.errors import RequestError
from onprem_mlops.site import Site, load_site
from tests.roles.harness import Case

ROLES = ["node", "firewall", "mirror", "containerd", "kubernetes", "network", "gpu"]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
REAL = {"model": "NVIDIA-L4"}
SIMULATED = {"model": "NVIDIA-L4", "count": 2, "simulated": True}


def node(name: str, number: int, *groups: str, gpus: Any = ()) -> dict[str, Any]:
    """A node of a site file."""
    key = KEY + chr(ord("A") + number % 26)
    return {
        "name": name,
        "address": f"192.0.2.{number}",
        "host_key": key,
        "groups": list(groups),
        "facts": {"gpus": [dict(one) for one in gpus]},
    }


def loaded(folder: Path, gpu_node: dict[str, Any], **settings: Any) -> Site:
    """A site with a control plane, workers, a node of the mirror, and this one."""
    others = node("w1", 21, "worker"), node("g9", 29, "worker", "gpu", gpus=[REAL])
    planes = () if "control_plane" in gpu_node["groups"] else (node("c1", 11, "control_plane"),)
    nodes = [*planes, *others, gpu_node, node("s1", 31, "services")]
    given = {"site": {"roles": ROLES, "nodes": nodes}, "settings": settings}
    return load_site(Case(Path("gpu/case.yaml"), given).written(folder))


def test_only_gpu_nodes_are_tainted_and_measured(tmp_path: Path) -> None:
    site = loaded(tmp_path, node("g1", 22, "worker", "gpu", gpus=[SIMULATED]), shared_by=3)
    settings: Any = site.settings("gpu")
    assert site.taints_of(site.node("g1")) == ("nvidia.com/gpu=present:NoSchedule",)
    assert site.taints_of(site.node("c1")) == ()
    (opening,) = settings.openings(site, site.node("g1"))
    assert (opening.port, opening.sources) == (9835, ("services",))
    assert settings.offered(site.node("g1")) == 6
    assert not list(settings.openings(site, site.node("s1")))


@pytest.mark.parametrize(
    "gpu_node, settings, said",
    [
        (node("g1", 22, "worker", gpus=[REAL]), {}, "has GPUs and is not in group gpu; add the group"),
        (node("g1", 22, "worker", "gpu"), {}, "is in group gpu and names no GPUs; add them to facts.gpus"),
        (node("g1", 22, "gpu", gpus=[REAL]), {}, "is in group gpu and no worker"),
        (node("g1", 22, "worker", "gpu", "control_plane", gpus=[REAL]), {}, "is in group gpu and a control plane"),
        (node("g1", 22, "worker", "gpu", gpus=[REAL, SIMULATED]), {}, "has real and simulated GPUs"),
        (node("g1", 22, "worker", "gpu", gpus=[SIMULATED]), {"mig": "1g.10gb"}, "simulated GPUs, which cannot be cut"),
        (
            node("g1", 22, "worker", "gpu", gpus=[REAL]),
            {"mig": "1g.10gb", "shared_by": 2},
            "give either mig or shared_by",
        ),
        (node("g1", 22, "worker", "gpu", gpus=[REAL]), {"shared_by": True}, "`shared_by` is true; a whole number"),
        (
            node("g1", 22, "worker", "gpu", gpus=[REAL]),
            {"quotas": {"a": "3"}},
            '`a` is "3"; write it without quotes: 3',
        ),
        (node("g1", 22, "worker", "gpu", gpus=[REAL]), {"driver": "newest"}, '"newest"; write it like 535.309.01'),
        (
            node("g1", 22, "worker", "gpu", gpus=[REAL]),
            {"quotas": {"Team A": 1}},
            '`Team A` is "Team A"; it must match',
        ),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, gpu_node: dict[str, Any], settings: Any, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        loaded(tmp_path, gpu_node, **settings)
    assert said in caught.value.message


@pytest.mark.parametrize("gpus", [(), (REAL,)])
def test_a_site_that_names_no_roles_has_it_with_its_first_gpu(tmp_path: Path, gpus: Any) -> None:
    nodes = [node("c1", 11, "control_plane"), node("w1", 21, "worker", gpus=gpus), node("s1", 31, "services")]
    file = Case(Path("gpu/case.yaml"), {"site": {"nodes": nodes}}).written(tmp_path) / "site.yaml"
    file.write_text(_without_roles(file.read_text()))
    if gpus:
        with pytest.raises(RequestError, match='no node is in group "gpu"'):
            load_site(tmp_path)
    else:
        assert not load_site(tmp_path).is_on("gpu")


def _without_roles(text: str) -> str:
    """A site file without its list of roles."""
    kept, inside = [], False
    for line in text.splitlines(keepends=True):
        inside = line.startswith("roles:") or (inside and line.startswith(("- ", " ")))
        if not inside:
            kept.append(line)
    return "".join(kept)
