"""One run on one site: its lock and what its log may show."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onprem_mlops.deployment import KEPT_RUNS, _forget_old, site_lock
from onprem_mlops.errors import RequestError
from onprem_mlops.site import Site

HOLD = """
import sys, time
from onprem_mlops.deployment import site_lock
from onprem_mlops.site import Site
with site_lock(Site.model_construct(name="held")):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> subprocess.Popen[str]:
    monkeypatch.setenv("MLOPS_STATE", str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "MLOPS_STATE": str(tmp_path)},
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_told_who_holds_the_site(holder: subprocess.Popen[str]) -> None:
    site = Site.model_construct(name="held")
    with pytest.raises(RequestError) as caught, site_lock(site):
        pass
    assert f"(process {holder.pid})" in caught.value.message
    assert "site held is held by" in caught.value.message
    holder.kill()
    holder.wait()


def test_a_killed_holder_leaves_the_site_free(holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    begun = time.monotonic()
    with site_lock(Site.model_construct(name="held")) as _:
        text = (Path(os.environ["MLOPS_STATE"]) / "sites" / "held" / "lock").read_text()
        assert json.loads(text)["pid"] == os.getpid()
    assert time.monotonic() - begun < 5


def test_logs_that_another_plan_forgets_at_the_same_time_are_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(KEPT_RUNS + 2):
        (tmp_path / f"{number:04}").mkdir()
        (tmp_path / f"{number:04}" / "run.jsonl").touch()
    listed = sorted(tmp_path.iterdir())
    monkeypatch.setattr(Path, "iterdir", lambda _: iter([tmp_path / "0000-gone", *listed]))
    _forget_old(tmp_path)
    monkeypatch.undo()
    assert sorted(tmp_path.iterdir()) == listed[2:]
