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

from onprem_mlops.deployment import site_lock
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
