"""Steps of the role node on nodes that are data."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from pyinfra.context import ctx_host

from onprem_mlops.errors import MlopsError
from onprem_mlops.plan import admissions
from roles.node.deploy import _edited, fit
from tests.roles.harness import Case, FakeNode, cases, check


@pytest.mark.parametrize("case", cases("node"))
def test_step(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


def test_a_file_that_is_edited_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("127.0.1.1 w1\n127.0.0.1 localhost\n")
    path.chmod(0o644)
    edit = _edited(str(path), r"s|^127\.0\.1\.1\s|# onprem-mlops &|")
    subprocess.run(["sh", "-c", f"umask 077; {edit}"], check=True)
    assert path.read_text() == "# onprem-mlops 127.0.1.1 w1\n127.0.0.1 localhost\n"
    assert oct(path.stat().st_mode)[-3:] == "644"
    assert [one.name for one in tmp_path.iterdir()] == ["hosts"]


DEBIAN = "debian|12|Debian GNU/Linux 12 (bookworm)\nx86_64"
ROUTES = '[{"dst": "default", "dev": "eth0"}, {"dst": "10.244.8.0/21", "dev": "vpn0"}]'


@pytest.mark.parametrize(
    ("facts", "refusal"),
    [
        ({}, ""),
        ({"date": 240}, ""),
        ({"date": 3 * 86400}, "w1: its clock is 3 days ahead of this machine's"),
        ({"date": -600}, "w1: its clock is 10 minutes behind this machine's"),
        ({"/etc/os-release": "ubuntu|24.04|Ubuntu 24.04.3 LTS\nx86_64"}, "w1 runs Ubuntu 24.04.3 LTS"),
        ({"ip -4 -json route": ROUTES}, "w1: its route to 10.244.8.0/21 (vpn0) overlaps"),
    ],
)
def test_a_node_that_cannot_be_laid_down_is_refused(facts: dict[str, Any], refusal: str, tmp_path: Path) -> None:
    case = Case(Path(__file__), {"node": "w1"})
    probes = {"/etc/os-release": DEBIAN, "date +%s": str(int(time.time()) + facts.pop("date", 0)), **facts}
    with ctx_host.use(FakeNode(probes=probes)):
        try:
            fit(case._context(tmp_path))
        except MlopsError as error:
            assert refusal
            assert refusal in error.message
        else:
            assert not refusal


def test_every_run_asks_whether_its_nodes_are_fit(tmp_path: Path) -> None:
    site = Case(Path(__file__), {}).site(tmp_path)
    assert [(one.id, len(one.nodes)) for one in admissions(site)] == [("node.fit", len(site.nodes))]
