"""Counting, exit codes, and the forms for machines."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

from onprem_mlops.verify.results import Check, Outcome, VerifyResult


def _result(*outcomes: Outcome) -> VerifyResult:
    checks = tuple(Check("node", f"n{at}", "A sentence", outcome) for at, outcome in enumerate(outcomes))
    return VerifyResult("lab", ("infrastructure",), 1.0, 2.0, checks)


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        (("passed", "passed"), 0),
        (("passed", "does_not_apply"), 0),
        (("passed", "failed"), 1),
        (("failed", "not_checked"), 1),
        (("passed", "not_checked"), 2),
        (("does_not_apply",), 2),
        ((), 2),
    ],
)
def test_exit_code(outcomes: tuple[Outcome, ...], code: int) -> None:
    assert _result(*outcomes).exit_code == code


def test_counts_leave_out_what_does_not_apply() -> None:
    record = _result("passed", "failed", "not_checked", "does_not_apply").record()
    counts = {name: record[name] for name in ("checked", "passed", "failed", "not_checked")}
    assert counts == {"checked": 2, "passed": 1, "failed": 1, "not_checked": 1}
    assert [check["outcome"] for check in record["checks"]] == ["passed", "failed", "not_checked", "does_not_apply"]


def test_junit_can_be_read_whatever_a_node_said(tmp_path: Path) -> None:
    check = Check("node", "", "A sentence", "failed", "control \x00\x1b characters & <tags>\nsecond line", "do this")
    result = VerifyResult(
        "lab", ("infrastructure",), 1.0, 2.0, (check, Check("node", "n1", "Other", "not_checked", "x"))
    )
    result.write_junit(tmp_path / "junit.xml")
    root = Xml.parse(tmp_path / "junit.xml").getroot()
    assert {key: root.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "2",
        "failures": "1",
        "errors": "1",
        "skipped": "0",
    }
    failure = root.find(".//testsuite[@name='node@site']/testcase/failure")
    assert failure is not None
    assert failure.get("message") == "control �� characters & <tags>"
    assert failure.text is not None and failure.text.endswith("second line\ndo this")
    # What could not be checked must not look like a skip, which readers of JUnit take for success.
    assert root.find(".//testsuite[@name='node@n1']/testcase/error") is not None
