"""The services from the store to verified, beside the cluster: a lab of its own, with everything.

Nodes are booted before the clock starts. Then one deploy lays down the whole phase, the services side by side with the
cluster, and their six suites verify them at the same time.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench._measure import figure, repeat_with
from bench._watch import watched
from bench.lab_up import load
from onprem_mlops.paths import site_state, state_dir
from tests.lab.sites import TestSite

NAME, SUBNET = "services-up", 91
LIMIT_SECONDS = 180
SERVICES = ("postgresql", "object_store", "gitea", "gitea_runner", "mlflow", "gateway")


def laid_down(site: TestSite) -> dict[str, float]:
    """Seconds after the deploy's begin at which each role's last step was done."""
    log = max((site_state(site.name) / "runs").iterdir()) / "run.jsonl"
    events: list[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()]
    begun = events[0]["at"]
    return {one["step"].partition(".")[0]: one["at"] - begun for one in events if one["kind"] == "step_done"}


def measure(site: TestSite) -> None:
    """Lay down and verify, and print the figure."""
    watched(site.command("lab", "up", "--nodes-only")).must("lab up --nodes-only")
    before, begun = load(), time.monotonic()
    watched(site.command("deploy", "infrastructure")).must("deploy")
    deployed = time.monotonic() - begun
    with ThreadPoolExecutor(len(SERVICES)) as pool:
        suites = [pool.submit(watched, site.command("verify", "infrastructure", "--role", one)) for one in SERVICES]
        for role, suite in zip(SERVICES, suites, strict=True):
            suite.result().must(f"verify --role {role}")
    verified = time.monotonic() - begun
    held = verified <= LIMIT_SECONDS
    figure("services beside the cluster, store to verified", f"{verified:.0f} s", "at most 3 min", held)
    sys.stdout.write(f"  deploy {deployed:.0f} s, the suites of the services {verified - deployed:.0f} s\n")
    sys.stdout.write("  done at: " + ", ".join(f"{role} {at:.0f} s" for role, at in laid_down(site).items()) + "\n")
    sys.stdout.write(f"load average before {before}, after {load()}\n")


def main() -> None:
    watched(["./mlops", "mirror", "build"]).must("mirror build")
    work = state_dir() / "bench-services-up"
    shutil.rmtree(work, ignore_errors=True)
    Path(work).mkdir(parents=True, mode=0o700)
    site = TestSite.copy("lab", NAME, SUBNET, work, ())
    try:
        measure(site)
    finally:
        watched(site.command("lab", "destroy", "--yes-destroy", NAME)).must("lab destroy")
        shutil.rmtree(work)
    repeat_with("./mlops bench services_up")


if __name__ == "__main__":
    main()
