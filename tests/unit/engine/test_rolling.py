"""What a control plane does with a node, by how the node stands: the shell, against a stand-in of kubectl."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from onprem_mlops.engine.operation import Command
from onprem_mlops.engine.operations import rolling
from onprem_mlops.engine.operations.kubectl import KUBECTL
from onprem_mlops.shell import Endpoint

STAND_IN = """#!/bin/sh
case $1 in --request-timeout=*) shift ;; esac
echo "$*" >>"$0.asked"
case "$*" in
"get nodes"*) printf '%s\\n' "$NODES" ;;
*"get pods"*) ;;
*phase*) [ ! -e "$0.away" ] || exit 1; echo "$PHASE"; [ "$PHASE" != Succeeded ] || touch "$0.away" ;;
*"get events"*) echo 'StartError no such device' ;;
"-n kube-system create"*) exit ${CREATED:-0} ;;
*metadata.annotations}*) echo '{"onprem-mlops.local/emptied":"true"}' ;;
*allocatable*) echo $OFFERS ;;
get*) echo "$STANDS" ;;
drain*) exit ${DRAINED:-0} ;;
esac
"""
"""kubectl, as far as the cluster's answers matter here. What they are is seen in the lab."""
NONE = "<no value>"
PLANE = Endpoint("cp1", "192.0.2.1", 22, "mlops", Path("key"), "ssh-ed25519 AAAA", sudo=True)
LABEL = "example.com/driver"
TRIAL = {"containers": [{"name": "trial"}]}


class Cluster:
    """Runs what a control plane would."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kubectl = folder / "kubectl"
        self._kubectl.write_text(STAND_IN)
        self._kubectl.chmod(0o755)

    def emptied(self, **said: str) -> subprocess.CompletedProcess[str]:
        """Empty g1, where the cluster says this."""
        options = {"label": LABEL, "leaving": "app=plugin", "resource": "cards", "drain": True, "seconds": 60}
        return self._run(rolling.emptied, options, {"OFFERS": "0", **said})

    def let_in(self, **said: str) -> subprocess.CompletedProcess[str]:
        """Let g1 in, where the cluster says this."""
        options = {"label": LABEL, "value": "2", "resource": "cards", "least": 2, "trial": TRIAL}
        return self._run(rolling.let_in, options, {"OFFERS": "2", **said})

    def _run(self, operation: Any, options: dict[str, Any], said: dict[str, str]) -> subprocess.CompletedProcess[str]:
        command: Command = next(operation.generator("g1", [PLANE], **options))
        script = str(command).partition(": on cp1: ")[2]
        script = script.replace(KUBECTL, str(self._kubectl)).replace("/run/", f"{self._folder}/")
        script = script.replace(f"await {rolling.OFFER_SECONDS} ", "await 1 ")
        environment = {"STANDS": NONE, **os.environ, **said}
        return subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=False)

    def told(self, *words: str) -> int:
        """How often kubectl was called with all these words at once."""
        asked = self._kubectl.with_name("kubectl.asked").read_text().splitlines()
        return sum(all(word in line for word in words) for line in asked)

    @property
    def lets_pods_in(self) -> bool:
        return self.told('"unschedulable": null') > 0

    @property
    def cordons(self) -> bool:
        return self.told('"unschedulable": true') > 0


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.mark.parametrize(
    ("stands", "cordons", "lets_in"),
    [
        pytest.param(f"{NONE}/{NONE}/535", True, True, id="as-ever"),
        pytest.param(f"{NONE}/{NONE}/{NONE}", True, True, id="new"),
        pytest.param(f"true/{NONE}/535", False, False, id="cordoned-by-a-person"),
        pytest.param("true/card/535", False, False, id="cordoned-for-a-card"),
        pytest.param("true/true/535", False, True, id="emptied-by-half-by-an-earlier-deploy"),
        pytest.param(f"true/true/{NONE}", False, False, id="changed-by-half-by-an-earlier-deploy"),
        pytest.param(f"true/true/{rolling.TRYING}", False, False, id="changed-and-tried-by-none"),
    ],
)
def test_a_node_that_cannot_be_emptied(cluster: Cluster, stands: str, cordons: bool, lets_in: bool) -> None:
    done = cluster.emptied(STANDS=stands, DRAINED="1")
    assert done.returncode == 1
    assert "g1 stays as it is. Finish or delete the pods" in done.stderr
    assert (cluster.cordons, cluster.lets_pods_in) == (cordons, lets_in)
    assert not cluster.told("label node")


def test_a_node_that_was_emptied_stays_cordoned(cluster: Cluster) -> None:
    done = cluster.emptied(STANDS=f"{NONE}/{NONE}/535")
    assert (done.returncode, cluster.cordons, cluster.lets_pods_in) == (0, True, False), done.stderr
    assert cluster.told("label node g1", f"{LABEL}-")


@pytest.mark.parametrize(
    ("nodes", "out"),
    [
        pytest.param("g1 true", "", id="itself"),
        pytest.param("g2 card\ng3 ", "", id="others-for-other-reasons"),
        pytest.param(f"g2 {NONE}", "", id="a-persons"),
        pytest.param("g1 true\ng2 true\ng3 true", "g2", id="another-one"),
    ],
)
def test_no_node_is_emptied_while_another_one_is_out(cluster: Cluster, nodes: str, out: str) -> None:
    done = cluster.emptied(NODES=nodes, STANDS=f"{NONE}/{NONE}/535")
    assert (done.returncode, f"{out} was emptied by an earlier deploy" in done.stderr) == (int(bool(out)), bool(out))
    assert cluster.cordons is not bool(out)
    assert not out or f"./mlops kubectl -- annotate node {out} {rolling.EMPTIED}-" in done.stderr


LET_IN = ("label node g1", f"{LABEL}=2")
TRYING = ("label node g1", f"{LABEL}={rolling.TRYING}")
FORGOTTEN = ("-n kube-system delete pod", "onprem-mlops-trial-g1")


def test_pods_come_once_a_pod_has_tried_the_node(cluster: Cluster) -> None:
    done = cluster.let_in(PHASE="Succeeded")
    assert (done.returncode, cluster.lets_pods_in) == (0, True), done.stderr
    assert [cluster.told(*TRYING), cluster.told(*LET_IN), cluster.told(*FORGOTTEN)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("said", "why", "forgotten"),
    [
        pytest.param({"PHASE": "Failed"}, "no such device", 2, id="it-fails"),
        pytest.param({"CREATED": "1"}, "", 1, id="it-is-refused"),
        pytest.param({"OFFERS": "1"}, "g1 offers 1 of cards and not 2", 0, id="cards-are-missing"),
    ],
)
def test_no_pod_comes_to_a_node_that_none_has_tried(
    cluster: Cluster, said: dict[str, str], why: str, forgotten: int
) -> None:
    """Nor does the next run take it for a node that has all it should have: its label says so."""
    done = cluster.let_in(**said)
    assert (done.returncode, cluster.lets_pods_in, cluster.told(*LET_IN)) == (1, False, 0)
    assert why in done.stderr
    assert [cluster.told(*TRYING), cluster.told(*FORGOTTEN)] == [1, forgotten]


def test_what_an_earlier_run_left_of_its_trial_keeps_no_drain(cluster: Cluster) -> None:
    cluster.emptied(STANDS=f"{NONE}/{NONE}/535")
    assert cluster.told(*FORGOTTEN) == 1
