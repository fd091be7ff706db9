"""The measured process of many.py: plans a whole site whose nodes are pyinfra's fake ones, on one core."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

from pyinfra.connectors.fake import FakeConnector  # noqa: E402

from onprem_mlops.artifacts.publish import StorePublisher  # noqa: E402
from onprem_mlops.deployment import Work, context_maker  # noqa: E402
from onprem_mlops.engine.run import Run  # noqa: E402
from onprem_mlops.plan import load_phase, plan  # noqa: E402
from onprem_mlops.site import load_site  # noqa: E402
from onprem_mlops.site.material import SiteMaterial, ensure_lab_material  # noqa: E402

BARE_NODE = {
    "$ID|$VERSION_ID": ["debian|12|Debian GNU/Linux 12 (bookworm)", "x86_64", "=0"],
    "$VERSION_CODENAME": ["bookworm", "=0"],
    "SSH_CONNECTION": ["10.77.100.1", "=0"],
}
"""All that a simulated node knows of itself; every other question is answered with nothing."""


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    folder = Path(sys.argv[1])
    ensure_lab_material(load_site(folder))
    begun = time.monotonic()
    site = load_site(folder)
    graph = plan(site, (load_phase("infrastructure"),))
    work = Work(site, graph, "infrastructure", planning=True)
    run = Run(
        site,
        graph,
        context_maker(work, StorePublisher(site), SiteMaterial(site, planning=True)),
        lambda event: None,
        phase="infrastructure",
        planning=True,
        connector=FakeConnector,
        connector_data={"fake_delay": 0, "fake_delay_jitter": 0, "fake_responses": BARE_NODE},
    )
    result = run.execute()
    failed = [step for step in result.steps if step.outcome == "failed"]
    assert not failed, failed[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(f"{time.monotonic() - begun:.1f} {peak:.0f} {result.changed} {len(site.nodes)}\n")


if __name__ == "__main__":
    main()
