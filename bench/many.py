"""The plan of 500 simulated nodes (pyinfra's fake connector: nothing answers, so everything is to be laid down).

One process on one core. The nodes are simulated; the site, the graph, the roles and the engine are the real ones.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bench._measure import figure, repeat_with, timed
from tests.lab.sites import CLUSTER

NODES = 500


def site_file(folder: Path) -> None:
    """A site of 500 nodes: three control planes, one for the mirror, one for backups, the rest workers."""
    groups = ["control_plane"] * 3 + ["services", "backup"] + ["worker"] * (NODES - 5)
    nodes = "\n".join(
        f"  - {{name: n{at}, address: 10.77.{100 + at // 250}.{at % 250 + 2}, host_key: generated, groups: [{group}]}}"
        for at, group in enumerate(groups)
    )
    (folder / "site.yaml").write_text(
        "version: 1\nname: bench-many\ndomain: many.mlops.test\n"
        "ssh: {user: mlops, key: generated}\n"
        "networks: {nodes: 10.77.100.0/22, api_address: 10.77.103.200, pods: 10.128.0.0/14}\n"
        f"nodes:\n{nodes}\nroles: [{', '.join(CLUSTER)}]\nlab: {{bridge: br-many}}\n"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        site_file(folder)
        environment = {"MLOPS_STATE": str(folder / "state")}
        done = timed(
            [sys.executable, str(Path(__file__).with_name("_plan_of_many.py")), str(folder)], environment=environment
        )
    seconds, peak, changed, nodes = done.output.split()[-4:]
    sys.stdout.write(f"{nodes} simulated nodes, {changed} operations would change something\n")
    figure("plan of all, one core", f"{seconds} s", "at most 60 s", float(seconds) <= 60)
    figure("  peak memory", f"{peak} MiB", "under 400 MiB", float(peak) < 400)
    repeat_with("./mlops bench many")


if __name__ == "__main__":
    main()
