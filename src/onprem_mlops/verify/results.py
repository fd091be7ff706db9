"""What a verification found, as typed results, and their forms for machines: JSON and JUnit XML."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree as Xml

SCHEMA = "verify/v1"
"""Name and version of the JSON form, described in docs/reference/json.md."""

Outcome = Literal["passed", "failed", "not_checked", "does_not_apply"]
"""``not_checked``: should have been checked and could not be. ``does_not_apply``: this site has no such thing."""

SITE = ""
"""The node of a check that concerns the site as a whole."""

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd]")


@dataclass(frozen=True, slots=True)
class Check:
    """One sentence about one node (or, with ``node`` empty, about the site) and whether it holds."""

    role: str
    node: str
    name: str
    outcome: Outcome
    message: str = ""
    """What was found where something else was expected; why it was not checked or does not apply; what was measured."""
    advice: str = ""
    seconds: float = 0.0
    controls: tuple[str, ...] = ()
    """Requirements of standards that the check is evidence for, such as ``CIS 1.2.1``."""

    @property
    def where(self) -> str:
        """The node, or the site as a whole."""
        return self.node or "site"


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """All checks of one verification of one site."""

    site: str
    phases: tuple[str, ...]
    started: float
    """Seconds since the epoch."""
    seconds: float
    checks: tuple[Check, ...]

    def count(self, outcome: Outcome) -> int:
        """How many checks ended that way."""
        return sum(check.outcome == outcome for check in self.checks)

    @property
    def passed(self) -> int:
        """Checks that hold."""
        return self.count("passed")

    @property
    def failed(self) -> int:
        """Checks that do not hold."""
        return self.count("failed")

    @property
    def not_checked(self) -> int:
        """Checks that should have been made and could not be."""
        return self.count("not_checked")

    @property
    def checked(self) -> int:
        """Checks that were made."""
        return self.passed + self.failed

    @property
    def exit_code(self) -> int:
        """0: all hold. 1: some do not. 2: nothing is wrong as far as could be checked, but not all could be."""
        if self.failed:
            return 1
        return 2 if self.not_checked or not self.checked else 0

    def of(self, *outcomes: Outcome) -> tuple[Check, ...]:
        """Checks with any of the outcomes, by node and role."""
        found = [check for check in self.checks if check.outcome in outcomes]
        return tuple(sorted(found, key=lambda check: (check.role, check.node, check.name)))

    def record(self) -> dict[str, Any]:
        """The result as plain data; see ``SCHEMA``."""
        counts = {name: getattr(self, name) for name in ("checked", "passed", "failed", "not_checked", "seconds")}
        return {
            "site": self.site,
            "phases": list(self.phases),
            "started": self.started,
            **counts,
            "checks": [asdict(check) for check in sorted(self.checks, key=_place)],
        }

    def write_junit(self, path: Path) -> None:
        """Write JUnit XML: a test suite for each role and node. What could not be checked is an error, not a skip."""
        root = Xml.Element("testsuites", {"name": f"verify {self.site}", **_totals(self.checks)})
        for role, node in sorted({(check.role, check.node) for check in self.checks}):
            of_both = [check for check in self.checks if (check.role, check.node) == (role, node)]
            suite = Xml.SubElement(root, "testsuite", {"name": f"{role}@{node or 'site'}", **_totals(of_both)})
            for check in sorted(of_both, key=_place):
                _testcase(suite, check)
        Xml.indent(root)
        Xml.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _place(check: Check) -> tuple[str, str, str]:
    return check.role, check.node, check.name


def _totals(checks: Iterable[Check]) -> dict[str, str]:
    of_all = list(checks)
    count = {outcome: sum(check.outcome == outcome for check in of_all) for outcome in _JUNIT}
    return {
        "tests": str(len(of_all)),
        "failures": str(count["failed"]),
        "errors": str(count["not_checked"]),
        "skipped": str(count["does_not_apply"]),
        "time": f"{sum(check.seconds for check in of_all):.3f}",
    }


_JUNIT: dict[Outcome, str] = {"failed": "failure", "not_checked": "error", "does_not_apply": "skipped"}


def _testcase(suite: Xml.Element, check: Check) -> None:
    case = Xml.SubElement(
        suite,
        "testcase",
        classname=f"{check.role}.{check.where}",
        name=_NOT_IN_XML.sub("�", check.name),
        time=f"{check.seconds:.3f}",
    )
    if check.outcome in _JUNIT:
        message = _NOT_IN_XML.sub("�", check.message)
        found = Xml.SubElement(case, _JUNIT[check.outcome], message=message.partition("\n")[0])
        found.text = _NOT_IN_XML.sub("�", f"{message}\n{check.advice}".strip())
