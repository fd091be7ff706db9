"""Whole verifications in their own process: how each kind of end is told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onprem_mlops.paths import REPOSITORY
from tests.unit.verify.conftest import MakeSite, verified


def test_every_end_of_a_check_is_told_apart(make_site: MakeSite) -> None:
    site = make_site(
        {
            "front": (
                "web",
                '''
                def test_good(site, record_property):
                    """It holds."""
                    record_property("found", "7 ms")
                    assert site.name == "t-unit", "no"

                @pytest.mark.controls("CIS 1.1", "CIS 1.2")
                def test_bad():
                    """It does not hold.

                    Turn it
                    on again.
                    """
                    assert 1 == 2, "found 1, expected 2"

                def test_bad_without_advice():
                    """It does not hold either."""
                    raise AssertionError("found nothing")

                def test_crash():
                    """It crashes."""
                    {}["key"]

                def test_other_site():
                    """It does not apply."""
                    raise DoesNotApply("there is none")

                def test_no_cluster(cluster):
                    """It needs a cluster."""

                def test_unseen():
                    """It cannot be seen."""
                    raise NotChecked("it is dark")

                @pytest.mark.limit(1)
                def test_slow():
                    """It takes for ever."""
                    import time
                    time.sleep(30)

                def test_after():
                    """It comes after that."""

                @pytest.mark.parametrize("port", [80, 443])
                def test_ports(port):
                    """It is asked for each port."""
                ''',
            )
        }
    )
    result, checks = verified(site)
    outcomes = {name: check.outcome for name, check in checks.items()}
    assert outcomes == {
        "It holds": "passed",
        "It does not hold": "failed",
        "It does not hold either": "failed",
        "It crashes": "failed",
        "It does not apply": "does_not_apply",
        "It needs a cluster": "does_not_apply",
        "It cannot be seen": "not_checked",
        "It takes for ever": "failed",
        "It comes after that": "passed",
        "It is asked for each port [80]": "passed",
        "It is asked for each port [443]": "passed",
    }
    assert checks["It holds"].message == "7 ms"
    bad = checks["It does not hold"]
    assert (bad.role, bad.node, bad.message) == ("front", "", "found 1, expected 2")
    assert bad.advice == "Turn it on again."
    assert bad.controls == ("CIS 1.1", "CIS 1.2")
    assert "./mlops deploy --role front" in checks["It does not hold either"].advice
    assert "KeyError" in checks["It crashes"].message and "test_front.py:" in checks["It crashes"].message
    assert checks["It needs a cluster"].message == "this site has no cluster"
    assert checks["It cannot be seen"].message == "it is dark"
    assert checks["It takes for ever"].message == "no answer within the check's time limit"
    assert (result.passed, result.failed, result.not_checked, result.exit_code) == (4, 4, 1, 1)


def test_an_unreachable_node_is_not_checked(make_site: MakeSite) -> None:
    site = make_site(
        {
            "front": (
                "web",
                '''
                def test_on_node(node):
                    """It looks at a node."""
                    raise AssertionError("a node that nobody reached was looked at")

                @pytest.mark.on("store")
                def test_on_some(node):
                    """It looks at some nodes."""

                def test_site():
                    """It looks at no node."""
                ''',
            ),
            "disk": ("store", ""),
        }
    )
    result, _ = verified(site)
    found = sorted((check.node, check.name, check.outcome) for check in result.checks)
    assert found == [
        ("", "It looks at no node", "passed"),
        ("one", "It looks at a node", "not_checked"),
        ("two", "It looks at a node", "not_checked"),
        ("two", "It looks at some nodes", "not_checked"),
    ]
    assert all(check.message == f"node {check.node} has no host key yet" for check in result.checks if check.node)
    assert result.exit_code == 2


def test_a_suite_that_cannot_be_read_is_told(make_site: MakeSite) -> None:
    site = make_site({"front": ("web", "import there_is_no_such_module"), "disk": ("store", "def test_it(): 'Holds.'")})
    result, checks = verified(site)
    broken = [check for check in result.checks if check.outcome == "not_checked"]
    assert broken and all("there_is_no_such_module" in check.message for check in broken)
    assert checks["Holds"].outcome == "passed"
    assert result.exit_code == 2


def test_a_worker_that_dies_is_told(make_site: MakeSite) -> None:
    site = make_site({"front": ("web", "import os\ndef test_it(): os._exit(9)")})
    result, _ = verified(site)
    assert [check.outcome for check in result.checks] == ["not_checked"]
    assert result.exit_code == 2


def test_cleaning_up_that_fails_is_a_failure(make_site: MakeSite) -> None:
    site = make_site(
        {
            "front": (
                "web",
                '''
                @pytest.fixture
                def thing():
                    yield
                    raise AssertionError("it cannot be removed")

                def test_it(thing):
                    """It holds."""
                ''',
            )
        }
    )
    result, checks = verified(site)
    assert checks["It holds"].outcome == "passed"
    assert checks["It holds (cleaning up after it)"].message == "it cannot be removed"
    assert result.exit_code == 1


INTERRUPTED = """
import sys, pathlib, threading, _thread
from onprem_mlops.plan import Phase, Use, site_roles
from onprem_mlops.site import load_site
from onprem_mlops.verify.runner import verify
from onprem_mlops.verify.selection import select
site = load_site(pathlib.Path(sys.argv[1]))
units = select(site, site_roles(site), [Phase("t", "0", "t", (Use("front"),))])
def stop(message):
    if message["kind"] == "check":
        raise KeyboardInterrupt
verify(site, units, ["t"], on_message=stop)
"""


def test_a_person_who_stops_it_leaves_nothing_running(make_site: MakeSite, tmp_path: Path) -> None:
    site = make_site(
        {
            "front": (
                "web",
                f'''
                import os, pathlib, time
                mark = pathlib.Path("{tmp_path}")

                @pytest.fixture(scope="module", autouse=True)
                def thing():
                    (mark / "pid").write_text(str(os.getpid()))
                    yield
                    (mark / "cleaned").write_text("")

                def test_first():
                    """It holds."""

                def test_second():
                    """It waits."""
                    time.sleep(50)
                ''',
            )
        }
    )
    begun = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(site.folder)], env=environment, capture_output=True, check=False
    )
    assert b"KeyboardInterrupt" in done.stderr
    assert time.monotonic() - begun < 20
    assert (tmp_path / "cleaned").exists(), "the fixture did not clean up"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
