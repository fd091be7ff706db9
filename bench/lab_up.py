"""From nothing to a verified lab, against the floor: a hand-written shell script that lays down the same.

The lab is one of its own, in a state folder of its own, so nothing of it is there before and nothing after; it can be
measured beside other labs. The artifact store is filled first, outside the clock. Then, in one run:

1. `lab up`: nodes boot, are laid down and verified. Its processes' memory is sampled all the while.
2. The configuration that our deploy wrote, the mirror's tree and the site's secrets are kept (bench/floor/prepare.py).
3. The lab is destroyed and booted anew; bench/floor/floor.sh lays down the same on the fresh nodes.
4. `verify` proves that it is the same, and `plan` says what our deploy would still do there.

Both sides are measured over the same scope: from booted nodes to a cluster that is ready.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench._measure import REPOSITORY, figure, repeat_with
from bench._watch import watched
from bench.floor.prepare import prepare
from onprem_mlops.paths import site_state, state_dir
from onprem_mlops.site import load_site
from tests.lab.sites import CLUSTER, TestSite

NAME, SUBNET = "floor", 90
LIMIT_SECONDS, LIMIT_RATIO, LIMIT_MIB = 240, 1.5, 300

KEPT = ("ca.pem", "certificates", "identity.txt", "recipients.txt", "secrets.yaml.age", "ssh")
"""What of the site's state both labs share: what the script lays down holds its authority and secrets."""


@dataclass(frozen=True, slots=True)
class Ours:
    """`lab up`, in its parts (seconds), with the memory of all its processes together."""

    boot: float
    deploy: float
    verify: float
    peak_mib: float

    @property
    def seconds(self) -> float:
        """From nothing to verified."""
        return self.boot + self.deploy + self.verify


@dataclass(frozen=True, slots=True)
class Floor:
    """The hand-written script, and our verification after it (seconds)."""

    deploy: float
    verify: float
    still: int
    """Operations that our deploy would still do after the script."""
    said: str


class Bench:
    """The lab of this measurement, below a folder that is removed at the end."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._site = work / NAME
        self._prepared = work / "prepared"
        self._kept = work / "kept"

    @property
    def _state(self) -> Path:
        return site_state(NAME)

    def _mlops(self, *words: str) -> list[str]:
        return ["./mlops", *words, "-i", str(self._site)]

    def make_site(self) -> None:
        """A copy of the lab's inventory with a name, a network and a bridge of its own; of its roles the cluster's."""
        TestSite.copy("lab", NAME, SUBNET, self._work, CLUSTER)

    def destroy(self) -> None:
        """Nothing of the lab is left."""
        if self._site.exists():
            watched(self._mlops("lab", "destroy", "--yes-destroy", NAME)).must("lab destroy")

    def ours(self) -> Ours:
        """Bring the lab up by our own command."""
        up = watched(self._mlops("lab", "up")).must("lab up")
        booted = max(line.at for line in up.lines if line.text.startswith("lab "))
        deployed = _ended(self._state / "runs")
        return Ours(booted - up.began, deployed - booted, up.ended - deployed, up.peak_mib)

    def keep(self) -> None:
        """Keep what the script starts from."""
        prepare(load_site(self._site), self._prepared)
        self._kept.mkdir(mode=0o700)
        for name in KEPT:
            source = self._state / name
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, self._kept / name)

    def fresh_nodes(self) -> None:
        """Boot new nodes on which nothing was laid down, with the keys and secrets of the old ones."""
        shutil.copytree(self._kept, self._state)
        watched(self._mlops("lab", "up", "--nodes-only")).must("lab up --nodes-only")

    def floor(self) -> Floor:
        """Have the script lay down the same, then verify it."""
        script = str(REPOSITORY / "bench" / "floor" / "floor.sh")
        laid = watched([script, str(self._prepared), str(self._state / "kubeconfig")]).must("floor.sh")
        checked = watched(self._mlops("verify", "infrastructure")).must("verify after floor.sh")
        return Floor(laid.seconds, checked.seconds, self._still(), laid.output)

    def _still(self) -> int:
        result = self._work / "plan.json"
        watched(self._mlops("plan", "infrastructure", "--json", str(result))).must("plan after floor.sh")
        plan: dict[str, Any] = json.loads(result.read_text())
        return int(plan["changed"])


def _ended(runs: Path) -> float:
    """When the newest run ended (seconds since the epoch)."""
    log = max(runs.iterdir()) / "run.jsonl"
    last: dict[str, Any] = json.loads(log.read_text().splitlines()[-1])
    assert last["kind"] == "run_ended", last
    return float(last["at"])


@contextmanager
def own_bench() -> Iterator[Bench]:
    """A folder for the measurement; what an earlier one that was killed left is removed first."""
    work = state_dir() / "bench-lab-up"
    os.environ["MLOPS_STATE"] = str(work / "state")
    bench = Bench(work)
    bench.destroy()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, mode=0o700)
    try:
        bench.make_site()
        yield bench
    finally:
        bench.destroy()
        shutil.rmtree(work)


def load() -> str:
    """The machine's load average, which decides what the figures are worth."""
    return " ".join(f"{one:.1f}" for one in os.getloadavg())


def report(ours: Ours, floor: Floor) -> None:
    """Print the figures."""
    sys.stdout.write(f"floor.sh:\n{floor.said}")
    figure(
        "lab up: four nodes, nothing to verified",
        f"{ours.seconds:.0f} s",
        "at most 4 min",
        ours.seconds <= LIMIT_SECONDS,
    )
    sys.stdout.write(f"  boot {ours.boot:.0f} s, deploy {ours.deploy:.0f} s, verify {ours.verify:.0f} s\n")
    sys.stdout.write(
        f"  the floor: deploy {floor.deploy:.0f} s, then our verify {floor.verify:.0f} s; "
        f"our deploy would still change {floor.still} things after it\n"
    )
    ratio = ours.deploy / floor.deploy
    figure("  deploy against the floor", f"{ratio:.2f} times", "at most 1.5 times", ratio <= LIMIT_RATIO)
    verified = (ours.deploy + ours.verify) / (floor.deploy + floor.verify)
    figure("  the same up to verified", f"{verified:.2f} times", "at most 1.5 times", verified <= LIMIT_RATIO)
    figure("  the controller, peak memory", f"{ours.peak_mib:.0f} MiB", "at most 300 MiB", ours.peak_mib <= LIMIT_MIB)


def main() -> None:
    watched(["./mlops", "mirror", "build"]).must("mirror build")
    before = load()
    with own_bench() as bench:
        ours = bench.ours()
        bench.keep()
        bench.destroy()
        between = load()
        bench.fresh_nodes()
        floor = bench.floor()
    report(ours, floor)
    sys.stdout.write(f"load average before {before}, between {between}, after {load()}\n")
    repeat_with("./mlops bench lab_up")


if __name__ == "__main__":
    main()
