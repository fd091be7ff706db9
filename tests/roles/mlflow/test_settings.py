"""What the role declares, and what it refuses in a site file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onprem_mlops.errors import RequestError
from onprem_mlops.site import load_site
from tests.roles.harness import Case

ROLES = ["node", "firewall", "mirror", "postgresql", "object_store", "mlflow"]
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


def inventory(folder: Path, roles: list[str] = ROLES, nodes: Any = None, **settings: Any) -> Path:
    """The cases' common site with these settings of the role."""
    site = {"roles": roles} | ({"nodes": nodes} if nodes else {})
    return Case(Path("mlflow/case.yaml"), {"site": site, "settings": settings}).written(folder)


def node(name: str, number: int, group: str, **more: Any) -> dict[str, Any]:
    """A node of a site file."""
    address, key = f"192.0.2.{number}", KEY + chr(ord("A") + number % 26)
    return {"name": name, "address": address, "host_key": key, "groups": [group], **more}


def test_without_a_gateway_everybody_reaches_its_node(tmp_path: Path) -> None:
    site = load_site(inventory(tmp_path))
    settings: Any = site.settings("mlflow")
    assert settings.endpoint(site) == "https://s1.roles.example.com:5000"
    (opening,) = settings.openings(site, site.node("s1"))
    assert (opening.port, opening.sources) == (5000, ("nodes", "pods", "controller"))
    assert list(settings.openings(site, site.node("w1"))) == []


def test_with_a_gateway_only_that_reaches_its_nodes(tmp_path: Path) -> None:
    nodes = [node("s1", 31, "services"), node("t1", 41, "tracking"), node("t2", 42, "tracking")]
    site = load_site(inventory(tmp_path, [*ROLES, "gateway"], nodes))
    settings: Any = site.settings("mlflow")
    assert settings.endpoint(site) == "https://mlflow.roles.example.com"
    (opening,) = settings.openings(site, site.node("t2"))
    assert opening.sources == ("192.0.2.31/32", "controller")
    (route,) = settings.routes(site)
    assert (route.nodes, route.health) == (("t1", "t2"), "/health")
    assert {one.groups for one in settings.databases(site)} == {("tracking",)}


def test_each_user_has_a_secret_and_each_team_a_workspace(tmp_path: Path) -> None:
    users = {"ada": {"teams": ["vision", "speech"]}, "bob": {"teams": ["speech"], "administrator": True}}
    site = load_site(inventory(tmp_path, users=users))
    settings: Any = site.settings("mlflow")
    assert {"user_ada", "user_bob"} <= {secret.name for secret in settings.secrets(site)}
    assert settings.teams == ("speech", "vision")


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"users": {"admin": {}}}, "the role's own account"),
        ({"users": {"ada": {"teams": ["default"]}}}, "who are in no team"),
        ({"users": {"Ada Lovelace": {}}}, "Ada Lovelace"),
        ({"users": {"ada": {"teams": ["Vision Team"]}}}, "teams"),
        ({"workers": 0}, "workers"),
        ({"memory": "plenty"}, "memory"),
        ({"deleted_runs_kept_days": 0}, "deleted_runs_kept_days"),
    ],
)
def test_what_could_not_be_served_is_refused(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as refusal:
        load_site(inventory(tmp_path, **settings))
    assert said in str(refusal.value)


def test_a_node_with_another_python_is_refused(tmp_path: Path) -> None:
    nodes = [node("s1", 31, "services"), node("t1", 41, "tracking", release=13)]
    with pytest.raises(RequestError, match="the Python of Debian 12"):
        load_site(inventory(tmp_path, nodes=nodes))


def test_a_database_that_its_backup_could_not_read_is_refused(tmp_path: Path) -> None:
    nodes = [node("s1", 31, "services"), node("d1", 41, "database", release=13)]
    with pytest.raises(RequestError, match="pg_dump of Debian 12"):
        load_site(inventory(tmp_path, nodes=nodes))
