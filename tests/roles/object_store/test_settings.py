"""What the role declares, and what it refuses in a site file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from onprem_mlops.errors import RequestError
from onprem_mlops.site import Site, load_site
from roles.object_store.contents import rights
from roles.object_store.settings import Settings, User
from tests.roles.harness import Case, cases

CONSUMER = """
from onprem_mlops.roles import Bucket, RoleSettings, Secret

class Settings(RoleSettings):
    groups = ("worker",)

    def secrets(self, site):
        yield Secret("storage_key")

    def buckets(self, site):
        yield Bucket("runs")
        yield Bucket("cache")
"""


def inventory(folder: Path, **settings: object) -> Path:
    """A site whose role `track_er` asks for two buckets."""
    role = folder / "roles/track_er"
    role.mkdir(parents=True)
    (role / "settings.py").write_text(CONSUMER)
    given = {"site": {"roles": ["node", "firewall", "mirror", "object_store", "track_er"]}, "settings": settings}
    return Case(Path("object_store/case.yaml"), given).written(folder)


def settings_of(site: Site) -> Settings:
    settings = site.settings("object_store")
    assert isinstance(settings, Settings)
    return settings


def test_a_role_that_asks_for_buckets_gets_them_and_a_user(tmp_path: Path) -> None:
    site = load_site(inventory(tmp_path, users={"team": {"read": ["runs"]}}))
    settings = settings_of(site)
    assert {name: one.data_class for name, one in settings.all_buckets(site).items()} == {
        "runs": "plain",
        "cache": "plain",
    }
    assert settings.all_users(site)["track-er"] == User(read=(), write=("runs", "cache"))
    assert settings.secret_of_user(site, "track-er") == ("track_er", "storage_key")
    assert settings.secret_of_user(site, "team") == ("object_store", "user_team")
    assert settings.internal_endpoint(site) == settings.endpoint(site) == "https://object-store.roles.example.com:9000"


def test_the_services_reach_every_node_under_one_name(tmp_path: Path) -> None:
    (case,) = (one.values[0] for one in cases("object_store") if one.id == "erasure-coded")
    assert isinstance(case, Case)
    site = case.site(tmp_path)
    settings = settings_of(site)
    name = str(urlsplit(settings.internal_endpoint(site)).hostname)
    assert [str(address) for address in site.names[name]] == ["192.0.2.11", "192.0.2.12"]
    certificates = {node.name: list(settings.certificates(site, node)) for node in site.nodes}
    assert [node for node, those in certificates.items() if any(name in one.dns for one in those)] == ["c1", "c2"]


@pytest.mark.parametrize(
    ("role", "who"),
    [("track_er", ("nodes", "pods")), ("track_er, gateway", ("192.0.2.11/32", "192.0.2.31/32", "worker"))],
    ids=["without-a-gateway", "behind-one"],
)
def test_who_reaches_it(tmp_path: Path, role: str, who: tuple[str, ...]) -> None:
    """The nodes of the gateway and its own, not all of their groups; and the groups of roles that have buckets."""
    file = inventory(tmp_path) / "site.yaml"
    file.write_text(file.read_text().replace("[control_plane]", "[gateway]").replace("track_er", role))
    site = load_site(tmp_path)
    (opening,) = settings_of(site).openings(site, site.node("s1"))
    assert opening.sources == (*who, "controller")


def test_an_external_store_has_no_nodes_and_no_secrets_of_ours(tmp_path: Path) -> None:
    site = load_site(inventory(tmp_path, engine="external", url="https://s3.example.com"))
    settings = settings_of(site)
    assert settings.hosts(site) == ()
    assert settings.endpoint(site) == "https://s3.example.com"
    assert {one.name for one in settings.secrets(site)} == {"user_verify", "user_verify-stranger"}
    assert not any(list(settings.openings(site, node)) for node in site.nodes)
    assert list(settings.routes(site)) == []
    assert settings.names(site) == {}


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"engine": "external"}, "`url` is for engine `external`"),
        ({"url": "https://s3.example.com"}, "`url` is for engine `external`"),
        ({"engine": "external", "url": "http://s3.example.com"}, "url"),
        ({"drives": ["/srv/a", "/srv/b"]}, "2 drives in all protect nothing"),
        ({"drives": ["/srv/a"] * 4}, "a drive is named twice"),
        ({"drives": ["srv/a"]}, "drives"),
        ({"buckets": {"Big": {}}}, "Big"),
        ({"buckets": {"runs": {}}}, "role track_er has a bucket of this name"),
        ({"buckets": {"verify-x": {}}}, "names with verify- belong to the checks"),
        ({"buckets": {"data": {"data_class": "gold"}}}, 'no class "gold"; there are working, temporary, record, plain'),
        ({"users": {"track-er": {}}}, '"track-er" is a user of the platform'),
        ({"users": {"verify": {}}}, '"verify" is a user of the platform'),
        ({"users": {"team": {"write": ["lost"]}}}, 'there is no bucket "lost"'),
    ],
)
def test_what_could_not_be_served_is_refused(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as refusal:
        load_site(inventory(tmp_path, **settings))
    assert said in str(refusal.value)


def test_rights_are_those_of_the_site_file_and_no_more() -> None:
    statements = json.loads(rights("team", User(read=("data",), write=("runs",))))["Statement"]
    writing = [one for one in statements if "s3:PutObject" in one["Action"]]
    assert [one["Resource"] for one in writing] == [["arn:aws:s3:::runs/*"]]
    reading = [one for one in statements if "s3:GetObject" in one["Action"]]
    assert [one["Resource"] for one in reading] == [["arn:aws:s3:::data/*", "arn:aws:s3:::runs/*"]]
    # What was deleted stays for as long as the bucket's class says: only the administrator removes versions.
    assert not any("s3:DeleteObjectVersion" in one["Action"] for one in statements)


def test_a_user_without_rights_has_none() -> None:
    (statement,) = json.loads(rights("team", User(read=(), write=())))["Statement"]
    assert (statement["Effect"], statement["Action"]) == ("Deny", ["s3:*"])
