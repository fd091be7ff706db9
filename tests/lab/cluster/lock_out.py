"""Loads packet filters that lock the controller out of two nodes of a site; run in a process of its own.

`w1` lets no new connection in, `b1` lets nothing in at all, not even the connection that loads it.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from types import SimpleNamespace  # noqa: E402
from typing import Any, cast  # noqa: E402

from onprem_mlops.engine.operations import network  # noqa: E402
from onprem_mlops.engine.run import Run  # noqa: E402
from onprem_mlops.events import Event  # noqa: E402
from onprem_mlops.plan import Graph, PlannedStep  # noqa: E402
from onprem_mlops.site import Node, load_site  # noqa: E402
from onprem_mlops.site.role import Role  # noqa: E402
from onprem_mlops.steps import Context, step, steps_of  # noqa: E402

FILE, TABLE = "/etc/nftables.d/locks-out.nft", "locks_out"
HOOK = "chain input {{\n\ttype filter hook input priority -20; policy accept;\n\ttcp dport 22 {} drop\n}}"
BODIES = {"w1": HOOK.format("ct state new"), "b1": HOOK.format("")}


@step(on="all")
def lock_out(ctx: Context[Any]) -> None:
    """Load what nobody gets through."""
    network.ruleset("rules that lock out", FILE, TABLE, BODIES[ctx.node.name])


def main() -> None:
    """Run the step on both nodes and print how it ended on each."""
    site = load_site(Path(sys.argv[1]))
    nodes = tuple(site.node(name) for name in BODIES)
    role = Role("demo", Path(), "demo", cast("Any", None))
    (only,) = steps_of(SimpleNamespace(lock_out=lock_out))
    planned = PlannedStep("demo.lock_out", role, only, nodes, frozenset(), frozenset())

    def context(planned: PlannedStep, node: Node) -> Context[Any]:
        return cast("Context[Any]", SimpleNamespace(node=node))

    def listen(event: Event) -> None:
        record = event.record()
        if record["kind"] == "step_failed":
            sys.stdout.write(f"{record['node']}: {record['output']}\n")

    Run(site, Graph((planned,)), context, listen, phase="test", planning=False).execute()


if __name__ == "__main__":
    main()
