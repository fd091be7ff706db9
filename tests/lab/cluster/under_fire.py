"""A first deploy that is killed again and again."""

from __future__ import annotations

import signal
import time
from typing import Any

from onprem_mlops import lab
from tests.lab.sites import Deploying, TestSite

KILLS = 25
STRIDE = 4
"""Operations that a run may begin before it is killed."""

CERTIFICATE = "certificate of the mirror"
SLOW_MS = 20
"""Delay of the node that gets the certificate, so that the kill is certain to come before the write has ended."""

DOWNLOAD = "kubelet"
DANGEROUS = ("first control plane", "worker joins", "base packages", CERTIFICATE, DOWNLOAD)
"""Operations inside which a run is killed: kubeadm init and join, an apt transaction, a certificate, a download."""

BRIEF = {
    CERTIFICATE: ("s1", "rm -f /etc/onprem-mirror/chain.pem"),
    DOWNLOAD: ("w1", "rm -f /usr/local/bin/kubelet"),
}
"""Those that may be over before the kill comes: the node, and how to have them once more."""


def laid_down(site: TestSite) -> list[str]:
    """Kill the first deploy again and again, each time some operations further, and let it end. Where it was killed."""
    points: list[str] = []
    kills = 0
    lab.netem(site.spec, "s1", delay_ms=SLOW_MS, loss_percent=0)
    while True:
        run = site.deploying()
        seen = 0
        for event in run.events():
            if event["kind"] != "operation_started":
                continue
            seen += 1
            name = event["operation"]
            if seen >= STRIDE or (name in DANGEROUS and not among(points, name)):
                # Inside the operation: a file is written within milliseconds, what makes a cluster takes longer.
                time.sleep(0 if name in BRIEF else 0.3)
                run.signal(signal.SIGKILL)
                kills += 1
                points += sorted(_cut_off(run))
                if name == CERTIFICATE:
                    lab.clear_netem(site.spec, "s1")
                break
        else:
            run.wait().must()
            assert kills >= KILLS, f"only {kills} kills: {points}"
            return points + _inside_the_brief(site, points)


def _inside_the_brief(site: TestSite, points: list[str]) -> list[str]:
    """Kill inside those brief operations that were always over before; then let the deploy end."""
    more: list[str] = []
    for name, (node, undo) in BRIEF.items():
        for _ in range(5):
            if among([*points, *more], name):
                break
            site.on(node, undo)
            run = site.deploying()
            assert run.until(lambda event, at=(node, name): (event.get("node"), event.get("operation")) == at)  # type: ignore[misc]
            run.signal(signal.SIGKILL)
            more += sorted(_cut_off(run))
    if more:
        site.run("deploy", "infrastructure").must()
    return more


def among(points: list[str], operation: str) -> bool:
    """Whether a run was killed inside this operation."""
    return any(point.endswith(f": {operation}") for point in points)


def _point(event: dict[str, Any]) -> str:
    return f"{event['step']} on {event['node']}: {event['operation']}"


def _cut_off(run: Deploying) -> set[str]:
    """The operations, one a node at most, that had begun and not ended when the run was killed."""
    begun: dict[str, str] = {}
    for event in run.events():
        if event["kind"] == "operation_started":
            begun[event["node"]] = _point(event)
        elif event["kind"] == "operation_done":
            begun.pop(event["node"], None)
    return set(begun.values())
