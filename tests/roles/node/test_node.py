"""Steps of the role node on nodes that are data."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from roles.node.deploy import _edited
from tests.roles.harness import Case, cases, check


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
