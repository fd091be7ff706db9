"""What the role declares, and what it refuses in a site file."""

from __future__ import annotations

from pathlib import Path

import pytest

from onprem_mlops.errors import RequestError
from onprem_mlops.roles import Opening
from onprem_mlops.site import load_site
from tests.roles.harness import Case

CONSUMER = """
from onprem_mlops.roles import Database, RoleSettings

class Settings(RoleSettings):
    def databases(self, site):
        return {databases}
"""


def site_with(folder: Path, databases: str, **settings: object) -> Path:
    """The inventory of a site whose role `consumer` asks for these databases."""
    role = folder / "roles/consumer"
    role.mkdir(parents=True)
    (role / "settings.py").write_text(CONSUMER.format(databases=databases))
    given = {"site": {"roles": ["node", "firewall", "mirror", "postgresql", "consumer"]}, "settings": settings}
    return Case(Path("postgresql/case.yaml"), given).written(folder)


def test_a_database_opens_the_port_to_the_nodes_of_its_clients(tmp_path: Path) -> None:
    site = load_site(site_with(tmp_path, "(Database('tracking', groups=('worker', 'services')),)"))
    settings = site.settings("postgresql")
    (opening,) = settings.openings(site, site.node("s1"))
    assert isinstance(opening, Opening)
    assert (opening.port, opening.sources) == (5432, ("services", "worker", "controller"))
    assert list(settings.openings(site, site.node("w1"))) == []
    assert site.names["postgresql.roles.example.com"] == (site.node("s1").address,)


@pytest.mark.parametrize(
    "databases, settings, said",
    [
        ("(Database('My-Data', groups=('worker',)),)", {}, "lower-case letters, digits and _"),
        ("(Database('postgres', groups=('worker',)),)", {}, 'a database "postgres"'),
        ("(Database('a', groups=('worker',)), Database('a', groups=('worker',)))", {}, "both ask for a database a"),
        ("(Database('a', groups=('worker',), connections=200),)", {}, "allow at least 220"),
        ("()", {"memory": "1MiB"}, "too little for a database server"),
        ("()", {"archive_command": "cp '%p' /srv"}, "archive_command"),
        ("()", {"connections": 10}, "connections"),
        ("()", {"standby": True}, "a standby needs two nodes in group database, and there are 0"),
        ("()", {"primary": "s1"}, "without a standby the first node of the group serves"),
    ],
)
def test_what_could_not_be_served_is_refused(
    tmp_path: Path, databases: str, settings: dict[str, object], said: str
) -> None:
    inventory = site_with(tmp_path, databases, **settings)
    with pytest.raises(RequestError) as refusal:
        load_site(inventory)
    assert said in str(refusal.value)
