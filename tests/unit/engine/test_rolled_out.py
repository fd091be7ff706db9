"""What is waited for until workloads are up: the shell, against a stand-in of kubectl, and what is not waited for."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from onprem_mlops.engine.operation import Command
from onprem_mlops.engine.operations import kubectl

STAND_IN = """#!/bin/sh
case "$*" in
"get nodes"*) printf '%s\\n' 'g1 True' "g2 $G2" ;;
*generation}) echo 3 ;;
*Generation}) echo ${SEEN:-3} ;;
*desiredNumberScheduled}) echo 2 ;;
*updatedNumberScheduled}) echo $UPDATED ;;
*numberAvailable}) echo $UP ;;
wait*) [ $UP -gt 0 ] ;;
*) exit 1 ;;
esac
"""
"""kubectl of a cluster whose rollouts are not complete."""


def _command(
    monkeypatch: pytest.MonkeyPatch, workload: str, said: dict[str, str], but: Collection[str]
) -> Command | None:
    """What the operation would run where the API says the same as kubectl does."""
    status = {
        "observedGeneration": int(said.get("SEEN", 3)),
        "desiredNumberScheduled": 2,
        "updatedNumberScheduled": int(said["UPDATED"]),
        "numberAvailable": int(said["UP"]),
        "conditions": [{"type": "Available", "status": str(said["UP"] != "0")}],
    }
    kind = "DaemonSet" if workload.startswith("daemonsets/") else "Deployment"
    known: dict[str, Any] = {
        "kind": kind,
        "metadata": {"generation": 3},
        "spec": {"replicas": 2},
        "status": status,
    }
    nodes = [
        {"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": ready}]}}
        for name, ready in (("g1", "True"), ("g2", said["G2"]))
    ]
    answers = {"/api/v1/nodes": {"items": nodes}, f"/apis/apps/v1/namespaces/kube-system/{workload}": known}
    monkeypatch.setattr(kubectl, "api", lambda path: kubectl.Answer(200, answers[path]))
    operation: Any = kubectl.rolled_out
    return next(operation.generator(workload, namespace="kube-system", seconds=1, but=but), None)


@pytest.mark.parametrize(
    ("workload", "said", "but", "enough"),
    [
        pytest.param("daemonsets/a", {"UPDATED": "2", "UP": "1"}, ["g1"], True, id="one-need-not-be-up"),
        pytest.param("daemonsets/a", {"UPDATED": "2", "UP": "0"}, ["g1"], False, id="the-others-must"),
        pytest.param("daemonsets/a", {"UPDATED": "1", "UP": "1"}, ["g1"], False, id="in-its-old-form"),
        pytest.param("daemonsets/a", {"UPDATED": "2", "UP": "1", "SEEN": "2"}, ["g1"], False, id="not-seen-yet"),
        pytest.param("daemonsets/a", {"UPDATED": "2", "UP": "1"}, [], False, id="all-must"),
        pytest.param("daemonsets/a", {"UPDATED": "1", "UP": "1", "G2": "Unknown"}, [], True, id="one-is-lost"),
        pytest.param("deployments/a", {"UPDATED": "1", "UP": "1"}, ["g1"], False, id="a-deployment-is-on-others"),
        pytest.param("deployments/a", {"UPDATED": "1", "UP": "1", "G2": "Unknown"}, [], True, id="a-lost-replica"),
    ],
)
def test_what_is_enough(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    workload: str,
    said: dict[str, str],
    but: Collection[str],
    enough: bool,
) -> None:
    said = {"G2": "True", **said}
    stand_in = tmp_path / "kubectl"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    waits = _command(monkeypatch, workload, said, but)
    assert (waits is None) == enough
    # The shell, which begins before it is so, ends when it is.
    begun = _command(monkeypatch, workload, {**said, "SEEN": "1"}, but)
    script = str(begun).replace(kubectl.KUBECTL, str(stand_in))
    done = subprocess.run(["sh", "-c", script], env={**os.environ, **said}, capture_output=True, check=False)
    assert (done.returncode == 0) == enough, done.stderr
