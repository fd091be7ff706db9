"""What is done to a node that cannot be emptied, by how it stood before: the shell as it runs on a control plane."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from onprem_mlops.engine.operations import rolling
from onprem_mlops.engine.operations.kubectl import KUBECTL

STAND_IN = """#!/bin/sh
echo "$*" >>"$0.asked"
case "$*" in
*jsonpath*) echo '{"onprem-mlops.local/emptied":"true"}' ;;
"get nodes"*) printf '%s\\n' "$NODES" ;;
get*) echo "$STANDS" ;;
drain*) exit ${DRAINED:-1} ;;
esac
"""
"""kubectl, as far as the cluster's answers matter here. What they are is seen in the lab."""
NONE = "<no value>"


class Cluster:
    """Runs what a control plane would."""

    def __init__(self, folder: Path) -> None:
        self._kubectl = folder / "kubectl"
        self._kubectl.write_text(STAND_IN)
        self._kubectl.chmod(0o755)

    def run(self, script: str, **said: str) -> subprocess.CompletedProcess[str]:
        script = script.replace(KUBECTL, str(self._kubectl))
        environment = {**os.environ, **said}
        return subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=False)

    @property
    def let_in(self) -> bool:
        """Whether the node was told that pods may come again."""
        return '"unschedulable": null' in self._asked

    @property
    def cordoned(self) -> bool:
        return '"unschedulable": true' in self._asked

    @property
    def _asked(self) -> str:
        return self._kubectl.with_name("kubectl.asked").read_text()


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.mark.parametrize(
    ("stands", "cordoned", "let_in"),
    [
        pytest.param(f"{NONE}/{NONE}/535", True, True, id="as-ever"),
        pytest.param(f"{NONE}/{NONE}/{NONE}", True, True, id="new"),
        pytest.param(f"true/{NONE}/535", False, False, id="cordoned-by-a-person"),
        pytest.param("true/card/535", False, False, id="cordoned-for-a-card"),
        pytest.param("true/true/535", False, True, id="emptied-by-half-by-an-earlier-deploy"),
        pytest.param(f"true/true/{NONE}", False, False, id="changed-by-half-by-an-earlier-deploy"),
    ],
)
def test_a_node_that_cannot_be_emptied(cluster: Cluster, stands: str, cordoned: bool, let_in: bool) -> None:
    done = cluster.run(rolling._drained("g1", "driver", 60), STANDS=stands)
    assert done.returncode == 1
    assert "g1 stays as it is. Finish or delete the pods" in done.stdout
    assert (cluster.cordoned, cluster.let_in) == (cordoned, let_in)


def test_a_node_that_was_emptied_stays_cordoned(cluster: Cluster) -> None:
    done = cluster.run(rolling._drained("g1", "driver", 60), STANDS=f"{NONE}/{NONE}/535", DRAINED="0")
    assert done.returncode == 0
    assert (cluster.cordoned, cluster.let_in) == (True, False)


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
    done = cluster.run(rolling._no_other_is_out("g1"), NODES=nodes)
    assert (done.returncode, f"{out} was emptied by an earlier deploy" in done.stdout) == (int(bool(out)), bool(out))
    assert done.stderr == ""
    assert not out or f"./mlops kubectl -- annotate node {out} {rolling.EMPTIED}-" in done.stdout
