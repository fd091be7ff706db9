"""The 60 operations through our engine: pyinfra's own operations, the same as in deploy.py, each called as ours."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
from io import StringIO  # noqa: E402
from pathlib import Path  # noqa: E402
from types import SimpleNamespace  # noqa: E402
from typing import Any, cast  # noqa: E402

from pyinfra.operations import apt, files, server, systemd  # noqa: E402

from onprem_mlops.console import show_summary  # noqa: E402
from onprem_mlops.engine.operation import adopt  # noqa: E402
from onprem_mlops.engine.run import Run  # noqa: E402
from onprem_mlops.plan import Graph, PlannedStep  # noqa: E402
from onprem_mlops.site import load_site  # noqa: E402
from onprem_mlops.site.role import Role  # noqa: E402
from onprem_mlops.steps import Context, step, steps_of  # noqa: E402

directory, put, line = adopt(files.directory), adopt(files.put), adopt(files.line)
packages, service, user = adopt(apt.packages), adopt(systemd.service), adopt(server.user)
PACKAGES = ("ca-certificates", "procps", "iproute2", "kmod", "sudo", "dbus", "systemd", "passwd", "grep", "sed")


@step(on="all")
def sixty(ctx: Context[Any]) -> None:
    directory("folder", path="/etc/mlops-bench", user="root", group="root", mode="755")
    for number in range(1, 20):
        put(
            f"file {number}",
            src=StringIO(f"setting {number}\n"),
            dest=f"/etc/mlops-bench/{number}.conf",
            user="root",
            group="root",
            mode="644",
        )
    for package in PACKAGES:
        packages(f"package {package}", packages=[package])
    for round_ in range(2):
        for unit in ("ssh", "dbus", "systemd-networkd", "systemd-journald"):
            service(f"service {unit} {round_}", service=f"{unit}.service", running=True)
    for number in range(10):
        line(f"line {number}", path="/etc/mlops-bench/lines.conf", line=f"key{number} = {number}")
    for number in range(6):
        user(f"user {number}", user=f"mlopsbench{number}", shell="/usr/sbin/nologin", system=True)
    for number in range(6):
        directory(f"data {number}", path=f"/var/lib/mlops-bench{number}", user=f"mlopsbench{number}", mode="750")


def main() -> None:
    site = load_site(Path(sys.argv[1]))
    role = Role("sixty", Path(), "sixty", cast("Any", None))
    own = steps_of(SimpleNamespace(sixty=sixty))[0]
    graph = Graph((PlannedStep("sixty.sixty", role, own, site.nodes, frozenset(), frozenset()),))
    run = Run(
        site,
        graph,
        lambda planned, node: cast("Context[Any]", SimpleNamespace(node=node)),
        lambda event: None,
        phase="sixty operations",
        planning=False,
    )
    result = run.execute()
    show_summary(result)
    assert all(one.operations == 60 for one in result.steps)
    sys.exit(0 if result.ok else 1)


if __name__ == "__main__":
    main()
