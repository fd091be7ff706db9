"""What the site file may say of Gitea, and what Gitea declares of a site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onprem_mlops.site import load_site
from roles.gitea.settings import Settings
from tests.roles.harness import Case


def problems(**given: Any) -> list[str]:
    return [getattr(one, "message", one) for one in Settings(**given).problems(None)]  # type: ignore[arg-type]


PERSON = {"email": "a@example.com"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"people": {"admin": PERSON}}, 'keeps the name "admin"'),
        ({"people": {"a.keys": PERSON}}, 'keeps the name "a.keys"'),
        ({"people": {"data": PERSON}, "organisations": {"Data": {}}}, '"data" is taken'),
        ({"people": {"onprem-mlops": PERSON}}, '"onprem-mlops" is taken'),
        ({"organisations": {"data": {"teams": {"owners": {}}}}}, "team Owners already"),
        ({"organisations": {"data": {"teams": {"one": {"members": ["carol"]}}}}}, '"carol" has no account'),
    ],
)
def test_names_that_gitea_would_refuse(given: dict[str, Any], says: str) -> None:
    found = problems(**given)
    assert len(found) == 1
    assert says in found[0]


def test_people_in_teams_are_right() -> None:
    assert problems(people={"a": PERSON}, organisations={"data": {"teams": {"one": {"members": ["a"]}}}}) == []


@pytest.mark.parametrize(
    "given",
    [
        {"people": {"a": {"email": "nowhere"}}},
        {"people": {"a b": PERSON}},
        {"people": {"a": {**PERSON, "ssh_keys": ["ssh-ed25519 AAAA a comment"]}}},
        {"two_factor": "sometimes"},
        {"mail": {"host": "mail.example.com", "sender": "nobody"}},
        {"memory": "much"},
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        Settings(**given)


ROLES = ["node", "firewall", "mirror", "postgresql", "object_store", "gitea"]
NODES = [
    {
        "name": f"n{number}",
        "address": f"192.0.2.3{number}",
        "host_key": f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{'A' * 42}{number}",
        "groups": ["services"],
    }
    for number in (1, 2)
]


@pytest.mark.parametrize(
    ("roles", "who"),
    [(ROLES, ("nodes", "pods", "controller")), ([*ROLES, "gateway"], ("192.0.2.31/32", "controller"))],
    ids=["without-a-gateway", "behind-one"],
)
def test_only_the_gateway_reaches_what_it_serves(tmp_path: Path, roles: list[str], who: tuple[str, ...]) -> None:
    """Other nodes of `services`, on which the gateway does not run, have no business there."""
    site = load_site(Case(Path("gitea/case.yaml"), {"site": {"roles": roles, "nodes": NODES}}).written(tmp_path))
    found = list(site.settings("gitea").openings(site, site.node("n1")))
    assert len(found) == 2 and {one.sources for one in found} == {who}
    assert list(site.settings("gitea").openings(site, site.node("n2"))) == []
