"""What a site offers once it is loaded, how fast that is, and what is never shown."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from onprem_mlops.errors import RequestError
from onprem_mlops.paths import REPOSITORY
from onprem_mlops.roles import Opening, Role
from onprem_mlops.site import Hidden, Site, SiteError, load_site
from onprem_mlops.site.explain import shown
from onprem_mlops.site.fields import fingerprint

_KEY_PREFIX = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20"


def test_nodes_and_groups(site: Site) -> None:
    assert [node.name for node in site.nodes] == ["cp1", "w1", "s1"]
    assert [node.name for node in site.in_group("worker", "services")] == ["w1", "s1"]
    assert site.in_group("all") == site.nodes
    assert site.in_group("backup") == ()
    assert site.node("w1").address == IPv4Address("192.0.2.21")
    with pytest.raises(RequestError, match="no node w9"):
        site.node("w9")


def test_defaults_are_typed_settings(site: Site) -> None:
    assert site.settings("kubernetes").model_dump() == {"max_pods": 110, "audit": True, "feature_gates": {}}
    assert site.is_on("monitoring")
    assert site.api_address == IPv4Address("192.0.2.11")


def test_a_role_that_is_not_listed_is_off(site_from: Callable[[str], Site]) -> None:
    good = (Path(__file__).parent / "good.yaml").read_text()
    site = site_from(good + "roles: [node]\n")
    assert not site.is_on("kubernetes")
    with pytest.raises(RequestError, match="role kubernetes is off"):
        site.settings("kubernetes")


def test_names_are_those_of_nodes_and_services(site: Site) -> None:
    assert site.names["w1.plant.example.com"] == (IPv4Address("192.0.2.21"),)
    assert site.names["storage.plant.example.com"] == (IPv4Address("192.0.2.31"),)


def test_a_site_does_not_change(site: Site) -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(site, "name", "other")  # noqa: B010 - what a type checker would refuse


def test_everything_that_can_be_said(site_from: Callable[[str], Site]) -> None:
    good = (Path(__file__).parent / "good.yaml").read_text()
    site = site_from(
        good
        + """\
    labels: {topology.kubernetes.io/zone: rack1}
    taints: ["nvidia.com/gpu=present:NoSchedule", "spare:NoExecute"]
    release: 12
    facts:
      disks: [{device: /dev/sdb, size: 2TiB, kind: nvme, simulated: true}]
      gpus: [{model: NVIDIA-L4, count: 2}]
apt: {mirror: "http://deb.example.com/debian"}
settings:
  kubernetes: {max_pods: 200, feature_gates: {Sidecars: true}}
  storage:
    volumes: [{name: data, copies: 3}]
"""
    )
    node = site.node("s1")
    assert [str(taint) for taint in node.taints] == ["nvidia.com/gpu=present:NoSchedule", "spare:NoExecute"]
    assert node.facts.disks[0].size == 2 << 40
    assert node.facts.gpus[0].count == 2
    assert site.settings("kubernetes").model_dump()["max_pods"] == 200


def test_a_lab_before_its_first_up_has_no_host_keys() -> None:
    site = load_site(REPOSITORY / "inventories/lab")
    assert site.lab is not None
    assert [node.host_key for node in site.nodes] == [None] * 4


@pytest.mark.parametrize("name", ["lab", "lab-ha"])
def test_the_labs_are_right(name: str) -> None:
    assert load_site(REPOSITORY / "inventories" / name).name == name


def test_no_file(tmp_path: Path, roles: Mapping[str, Role]) -> None:
    with pytest.raises(RequestError, match=r"site\.yaml does not exist"):
        load_site(tmp_path / "nowhere", roles)


@pytest.mark.parametrize("content", [b"name: \xff\xfe", b"name: \x00\n", b"name: \x1b[31m\n"])
def test_no_text(content: bytes, tmp_path: Path, roles: Mapping[str, Role]) -> None:
    (tmp_path / "site.yaml").write_bytes(content)
    with pytest.raises(RequestError, match="UTF-8"):
        load_site(tmp_path, roles)


def test_a_password_in_an_address_is_not_shown() -> None:
    assert shown("http://ada:hunter2@proxy") == '"http://…@proxy"'
    assert "hunter2" not in shown("hunter2", ("settings", "x", "admin_password"))


def test_hidden_is_hidden() -> None:
    secret = Hidden("hunter2")
    assert "hunter2" not in f"{secret} {secret!r} {secret:>20} {[secret]}"
    assert secret.reveal() == "hunter2"
    assert secret == Hidden("hunter2")


def test_fingerprint_is_that_of_ssh_keygen() -> None:
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDOG0Js9cLPBeaK5Q+iDcGjeH1XDIeLP85CSWmdd4tGu"
    assert fingerprint(key) == "SHA256:hVeOuy3EPTC53m7idksxINnfXBQNRkpRS4+v0MO5ABk"


@pytest.mark.parametrize("port", [0, 70000, "9-1", "ssh", None])
def test_an_opening_without_a_right_port_is_a_mistake_of_its_role(port: int | str | None) -> None:
    with pytest.raises(ValueError, match="opening for x"):
        Opening(port, ("nodes",), "x")


def test_openings() -> None:
    assert Opening("30000-32767", ("nodes",), "x").ports == (30000, 32767)
    assert Opening(None, ("control_plane",), "x", protocol="vrrp").port is None


def _big_site(nodes: int) -> str:
    good = (Path(__file__).parent / "good.yaml").read_text().replace("192.0.2.0/24", "172.16.0.0/20")
    lines = [good.replace("192.0.2.", "172.16.0.")]
    for index in range(nodes - 3):
        key = "ssh-ed25519 " + base64.b64encode(_KEY_PREFIX + index.to_bytes(32, "big")).decode()
        lines.append(
            f"  - name: n{index}\n    address: 172.16.{1 + index // 250}.{1 + index % 250}\n"
            f"    host_key: {key}\n    groups: [worker]\n    labels: {{rack: r{index % 20}}}\n"
        )
    return "".join(lines)


def test_five_hundred_nodes_load_within_three_seconds(site_from: Callable[[str], Site]) -> None:
    begun = time.process_time()
    try:
        site = site_from(_big_site(500))
    except SiteError as error:
        raise AssertionError(error.problems[:3]) from None
    assert len(site.nodes) == 500
    assert time.process_time() - begun < 3


def test_the_lab_loads_within_150_milliseconds() -> None:
    load_site(REPOSITORY / "inventories/lab")
    times = []
    for _ in range(3):
        begun = time.process_time()
        load_site(REPOSITORY / "inventories/lab")
        times.append(time.process_time() - begun)
    assert min(times) < 0.15, times
