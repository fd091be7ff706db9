"""What a lab may be, and what is refused before anything is touched."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from onprem_mlops.errors import RequestError
from onprem_mlops.lab import LabNode, LabSpec, bridge_name
from onprem_mlops.site import LabKeys, Site


def spec(**changes: Any) -> LabSpec:
    """A good lab with some fields changed."""
    values: dict[str, Any] = {
        "site": "lab",
        "nodes": (LabNode("cp1", IPv4Address("10.77.0.11")),),
        "network": IPv4Network("10.77.0.0/24"),
        "bridge": "br-lab",
    }
    return LabSpec(**{**values, **changes})


def node(name: str = "cp1", address: str = "10.77.0.11", **more: Any) -> tuple[LabNode, ...]:
    """One node, as a lab's nodes."""
    return (LabNode(name, IPv4Address(address), **more),)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"nodes": node(address="192.168.1.5")}, "cp1: address 192.168.1.5 is outside 10.77.0.0/16"),
        ({"nodes": node(address="10.78.0.11")}, "address 10.78.0.11 is outside 10.77.0.0/16"),
        ({"nodes": node(address="10.77.3.11")}, "cp1: address 10.77.3.11 is outside the lab's network 10.77.0.0/24"),
        ({"nodes": node(address="10.77.0.1")}, "10.77.0.1 is reserved"),
        ({"nodes": node(address="10.77.0.255")}, "10.77.0.255 is reserved"),
        ({"network": IPv4Network("10.0.0.0/8")}, "network 10.0.0.0/8 is outside 10.77.0.0/16"),
        ({"network": IPv4Network("192.168.0.0/24")}, "network 192.168.0.0/24 is outside 10.77.0.0/16"),
        ({"network": IPv4Network("10.77.0.8/30")}, "has no room"),
        ({"bridge": "br-with-too-long-a-name"}, "bridge name"),
        ({"bridge": ""}, "bridge name"),
        ({"site": "Lab 1"}, "site name 'Lab 1'"),
        ({"nodes": node(name="cp_1")}, "node name 'cp_1'"),
        ({"nodes": node(name="../x")}, "node name '../x'"),
        ({"nodes": node(release="sid")}, "release 'sid' is not one of bookworm, trixie"),
        ({"nodes": node(memory_mib=16)}, "16 MiB of memory are too little"),
        ({"nodes": ()}, "there is no node"),
        ({"nodes": node() * 2}, "two nodes are named cp1"),
        ({"nodes": node() + node("w1")}, "cp1 and w1 have the same address 10.77.0.11"),
        ({"user": "root"}, "SSH user 'root'"),
        ({"host_address": IPv4Address("10.77.9.1")}, "this machine's address 10.77.9.1 is outside"),
        ({"host_address": IPv4Address("10.77.0.11")}, "10.77.0.11 is reserved"),
        ({"data_folders": ("/etc",)}, "data folder '/etc'"),
        ({"data_folders": ("/var/../etc",)}, "data folder '/var/../etc'"),
    ],
)
def test_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError) as refused:
        spec(**changes)
    assert complaint in refused.value.message
    assert refused.value.advice


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(RequestError) as refused:
        spec(bridge="", nodes=node(address="192.168.1.5"))
    assert "bridge name" in refused.value.message
    assert "192.168.1.5" in refused.value.message


def test_controller_is_the_first_address_unless_named() -> None:
    assert str(spec().controller) == "10.77.0.1/24"
    assert str(spec(host_address=IPv4Address("10.77.0.254")).controller) == "10.77.0.254/24"


def test_an_unknown_node_is_refused_with_those_there_are() -> None:
    with pytest.raises(RequestError, match="no node w9") as refused:
        spec().node("w9")
    assert "cp1" in refused.value.advice


def test_two_labs_have_different_machines_and_bridges() -> None:
    one, other = (LabSpec.of(site, {"cp1": "10.77.0.11"}) for site in ("lab", "lab-ha"))
    assert one.machine(one.nodes[0]) != other.machine(other.nodes[0])
    assert one.bridge != other.bridge
    assert len(bridge_name("a-very-long-site-name")) <= 15


def site(**lab: str) -> Site:
    """A site of two nodes with a `lab:` section."""
    values = {
        "version": 1,
        "name": "small",
        "domain": "small.test",
        "ssh": {"user": "admin", "key": "generated"},
        "networks": {"nodes": "10.77.9.0/24"},
        "nodes": [
            {"name": "a", "address": "10.77.9.11", "host_key": "generated", "groups": []},
            {"name": "b", "address": "10.77.9.12", "host_key": "generated", "groups": [], "release": 13},
        ],
        "lab": lab,
    }
    return Site.model_validate(values, context=LabKeys("small"))


def test_a_site_file_describes_a_lab() -> None:
    spec = LabSpec.from_site(site(bridge="br-small", host_address="10.77.9.254"))
    assert [(one.name, str(one.address), one.release) for one in spec.nodes] == [
        ("a", "10.77.9.11", "bookworm"),
        ("b", "10.77.9.12", "trixie"),
    ]
    assert (spec.site, spec.bridge, spec.user, str(spec.controller)) == ("small", "br-small", "admin", "10.77.9.254/24")


def test_a_real_site_is_never_made_into_a_lab() -> None:
    with pytest.raises(RequestError, match="is no lab"):
        LabSpec.from_site(site().model_copy(update={"lab": None}))
