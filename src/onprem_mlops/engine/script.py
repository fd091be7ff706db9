"""A phase under the plain `pyinfra` command: each step is one `python.call`, so what it calls runs in immediate mode.

No lock, no run log and no display of ours here: that is what `./mlops deploy` adds.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from pyinfra.context import host
from pyinfra.operations import python

from onprem_mlops.deployment import Work, context_maker
from onprem_mlops.engine.connector import ENDPOINT
from onprem_mlops.engine.inventory import endpoint
from onprem_mlops.plan import Graph, Phase, PlannedStep, plan
from onprem_mlops.site import Site, load_site

_values: dict[str, dict[str, Any]] = {}
"""Step → node → what it returned; pyinfra finishes one operation on all nodes before the next begins."""


@cache
def _graph(folder: str, phase: Phase) -> tuple[Site, Graph, Any]:
    from onprem_mlops.artifacts.publish import StorePublisher
    from onprem_mlops.site.material import SiteMaterial

    site = load_site(Path(folder))
    work = Work(site, plan(site, (phase,)), phase.name, planning=False)
    maker = context_maker(work, StorePublisher(site), SiteMaterial(site, planning=False))
    return site, work.graph, maker


def lay_down(phase: Phase) -> None:
    """Add every step of the phase that runs on the current pyinfra host."""
    folder: str = host.data.get("mlops_inventory")
    site, graph, maker = _graph(folder, phase)
    node = site.node(host.name)
    host.connector_data[ENDPOINT] = endpoint(site, node)
    for planned in graph:
        # Called for every node, so that the order of operations is the same on all of them.
        if node in planned.nodes:
            python.call(name=f"{planned.id}", function=_step, planned=planned, maker=maker, site=site)


def _step(planned: PlannedStep, maker: Any, site: Site) -> None:
    inputs: dict[str, Any] = {}
    for name in planned.step.inputs:
        values = _values[f"{planned.role.name}.{name}"]
        single = planned.role.name and _only_first(planned, name)
        inputs[name] = next(iter(values.values())) if single else values
    node = site.node(host.name)
    value = planned.step.function(maker(planned, node), **inputs)
    _values.setdefault(planned.id, {})[node.name] = value


def _only_first(planned: PlannedStep, name: str) -> bool:
    from onprem_mlops.plan import deploy_module
    from onprem_mlops.steps import steps_of

    return any(one.name == name and one.only == "first" for one in steps_of(deploy_module(planned.role)))
