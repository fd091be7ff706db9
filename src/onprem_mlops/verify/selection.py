"""Which suites are run on which nodes. Pure: needs no node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from onprem_mlops.errors import RequestError
from onprem_mlops.paths import REPOSITORY
from onprem_mlops.plan import Phase, refuse_unknown
from onprem_mlops.site import Site
from onprem_mlops.site.role import Role
from onprem_mlops.verify.results import SITE


@dataclass(frozen=True, slots=True)
class Suite:
    """Files of checks of one role, or of one phase as a whole."""

    role: str
    """For a phase, the phase's name."""
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Unit:
    """What one worker does: all suites of one node, or one suite's checks of the site as a whole."""

    node: str
    """Empty (``SITE``) for checks of the site as a whole."""
    suites: tuple[Suite, ...]

    @property
    def name(self) -> str:
        """How a person knows it."""
        return self.node or f"site: {', '.join(suite.role for suite in self.suites)}"


def select(
    site: Site,
    roles: Mapping[str, Role],
    phases: Iterable[Phase],
    *,
    role: str | None = None,
    node: str | None = None,
    phase_suites: Path = REPOSITORY / "tests" / "phases",
) -> tuple[Unit, ...]:
    """The units of a verification; those of the site as a whole come first, because they wait longest.

    ``role`` keeps that role's suite, ``node`` what concerns that node alone. RequestError for names that are not
    there, and if nothing is left to check.
    """
    wanted = tuple(phases)
    on = list(dict.fromkeys(name for phase in wanted for name in phase.roles if site.is_on(name)))
    refuse_unknown("role", role, on)
    refuse_unknown("node", node, [one.name for one in site.nodes])
    suites = {name: _suite(name, roles[name].folder / "verify") for name in on if role in (None, name)}
    across = [_suite(phase.name, phase_suites / phase.name) for phase in wanted if role is None]
    nodes = [one.name for one in site.nodes if node in (None, one.name)]
    of_nodes = [_node_unit(site, roles, suites, across, name) for name in nodes]
    of_site: list[Unit] = []
    if node is None:
        whole = [*suites.values(), *across]
        # Last roles first: they stand on the others and wait longest (pods that start, names that spread).
        of_site = [Unit(SITE, (suite,)) for suite in reversed(whole)]
    units = tuple(unit for unit in (*of_site, *of_nodes) if any(suite.files for suite in unit.suites))
    if not units:
        names = ", ".join(phase.name for phase in wanted) or "this site"
        raise RequestError(
            f"nothing to verify: no suite of {names} concerns this role and node",
            "Suites are roles/<role>/verify/test_*.py and tests/phases/<phase>/test_*.py.",
        )
    return units


def _suite(name: str, folder: Path) -> Suite:
    return Suite(name, tuple(sorted(folder.glob("test_*.py"))))


def _node_unit(
    site: Site, roles: Mapping[str, Role], suites: Mapping[str, Suite], across: Iterable[Suite], node: str
) -> Unit:
    mine = [
        suite
        for name, suite in suites.items()
        if node in {one.name for one in site.in_group(*roles[name].groups)} and suite.files
    ]
    return Unit(node, (*mine, *(suite for suite in across if suite.files)))
