"""Steps of the role gateway on nodes that are data, and what it refuses in a site file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from onprem_mlops.errors import RequestError
from onprem_mlops.site import Site, load_site
from tests.roles.harness import Case, cases, check


@pytest.fixture(autouse=True)
def routes(tmp_path: Path) -> None:
    """A role of the site's own that has services with names."""
    shutil.copytree(Path(__file__).with_name("echo"), tmp_path / "roles" / "echo")


@pytest.mark.parametrize("case", cases("gateway"))
def test_step(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


def _site(folder: Path, roles: list[str], **settings: Any) -> Site:
    yaml = YAML(typ="safe")
    case = Case(Path(__file__).with_name("site.yaml"), {"site": {"roles": ["node", "firewall", "mirror", *roles]}})
    written = yaml.load(case.written(folder) / "site.yaml")
    yaml.dump(written | {"settings": settings}, folder / "site.yaml")
    return load_site(folder)


def test_names_lead_to_the_first_gateway(tmp_path: Path) -> None:
    site = _site(tmp_path, ["gateway", "echo"])
    address = site.node("s1").address
    assert {site.names["echo.roles.example.com"], site.names["other.roles.example.com"]} == {(address,)}


def test_everybody_on_the_site_and_the_company_s_networks_may_come(tmp_path: Path) -> None:
    site = _site(tmp_path, ["gateway", "echo"], gateway={"clients": ["198.51.100.0/24"]})
    openings = {one.port: one.sources for one in site.settings("gateway").openings(site, site.node("s1"))}
    assert openings == dict.fromkeys((443, 2222), ("nodes", "pods", "controller", "198.51.100.0/24"))
    assert list(site.settings("gateway").openings(site, site.node("w1"))) == []


@pytest.mark.parametrize(
    "roles, settings, said",
    [
        (["gateway"], {}, "no role that is on has a service for the gateway"),
        (["gateway", "echo"], {"echo": {"second": "echo"}}, "two routes want echo.roles.example.com on port 443"),
        (["gateway", "echo"], {"echo": {"ssh": 2222}}, "listens on port 2222, which is the gateway's on s1"),
        (["gateway", "echo"], {"echo": {"ssh": 443}}, "listens on port 443, which is the gateway's on s1"),
        (["gateway", "echo"], {"gateway": {"clients": ["198.51.100.7/24"]}}, "clients"),
        (["gateway", "echo"], {"gateway": {"memory": "lots"}}, "memory"),
        (["gateway", "echo"], {"gateway": {"connections": 10}}, "connections"),
    ],
)
def test_bad_sites_are_refused(tmp_path: Path, roles: list[str], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as refused:
        _site(tmp_path, roles, **settings)
    assert said in f"{refused.value.message} {refused.value.advice}"
