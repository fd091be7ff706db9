"""Which suites run where."""

from __future__ import annotations

from pathlib import Path

import pytest

from onprem_mlops.errors import RequestError
from onprem_mlops.plan import site_roles
from onprem_mlops.verify.selection import Unit, select
from tests.unit.verify.conftest import MakeSite, phase

SUITE = "def test_it(site): pass"


def _names(units: tuple[Unit, ...]) -> list[tuple[str, list[str]]]:
    return [(unit.node, [suite.role for suite in unit.suites]) for unit in units]


def test_each_node_gets_the_suites_of_its_roles(make_site: MakeSite) -> None:
    site = make_site({"front": ("web", SUITE), "disk": ("store", SUITE)})
    (site.folder / "phases" / "testing").mkdir(parents=True)
    (site.folder / "phases" / "testing" / "test_all.py").write_text("")
    units = select(site, site_roles(site), [phase(site)], phase_suites=site.folder / "phases")
    of_site = [["testing"], ["disk"], ["front"]]
    of_nodes = [("one", ["front", "testing"]), ("two", ["front", "disk", "testing"])]
    assert _names(units) == [*(("", names) for names in of_site), *of_nodes]


def test_role_and_node_narrow_it(make_site: MakeSite) -> None:
    site = make_site({"front": ("web", SUITE), "disk": ("store", SUITE)})
    roles = site_roles(site)
    assert _names(select(site, roles, [phase(site)], role="disk")) == [("", ["disk"]), ("two", ["disk"])]
    assert _names(select(site, roles, [phase(site)], node="one")) == [("one", ["front"])]


@pytest.mark.parametrize(
    ("role", "node", "message", "advice"),
    [
        ("frnt", None, "no role 'frnt'", 'did you mean "front"?'),
        (
            "infrastructure",
            None,
            "infrastructure is a phase and no role",
            "to deploy or verify it, leave --role out; for a role, known: front",
        ),
        (None, "tow", "no node 'tow'", 'did you mean "two"?'),
        (None, "zzzzz", "no node 'zzzzz'", "known: one, two"),
    ],
)
def test_wrong_names_are_refused(
    make_site: MakeSite, role: str | None, node: str | None, message: str, advice: str
) -> None:
    site = make_site({"front": ("web", SUITE)})
    with pytest.raises(RequestError) as refusal:
        select(site, site_roles(site), [phase(site)], role=role, node=node)
    assert message in refusal.value.message
    assert refusal.value.advice == advice


def test_nothing_to_verify_is_refused(make_site: MakeSite, tmp_path: Path) -> None:
    site = make_site({"front": ("web", SUITE), "disk": ("store", SUITE)})
    with pytest.raises(RequestError, match="nothing to verify"):
        select(site, site_roles(site), [phase(site)], role="disk", node="one")
