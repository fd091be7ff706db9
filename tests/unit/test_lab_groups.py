"""Tests that share a lab run in one process: a lab made twice costs a quarter of an hour and breaks what follows on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from onprem_mlops.paths import REPOSITORY
from onprem_mlops.tiers import TIERS

NOTES_AND_RUNS_NOTHING = """
import os, pathlib, pytest

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    of_lab = item.path.relative_to(item.config.rootpath / "tests" / "lab").parts[0]
    worker = os.environ["PYTEST_XDIST_WORKER"]
    pathlib.Path(__file__).with_name(worker).open("a").write(of_lab + "\\n")
    return True
"""


def test_each_lab_is_one_workers(tmp_path: Path) -> None:
    (tmp_path / "noting.py").write_text(NOTES_AND_RUNS_NOTHING)
    lab = next(tier for tier in TIERS if tier.name == "lab")
    _python, *tests = next(command for command in lab.commands if "pytest" in command)
    done = subprocess.run(
        (sys.executable, *tests, "-p", "noting"),
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    workers: dict[str, set[str]] = defaultdict(set)
    for worker in ("gw0", "gw1"):
        for of_lab in (tmp_path / worker).read_text().split():
            workers[of_lab].add(worker)
    assert {"services", "cluster", "test_gpu.py"} <= set(workers), done.stdout + done.stderr
    assert not {of_lab: found for of_lab, found in workers.items() if len(found) > 1}
