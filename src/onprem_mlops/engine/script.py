"""A phase under the plain `pyinfra` command: each step is one `python.call`, so what it calls runs in immediate mode.

No lock, no run log and no display of ours here: that is what `./mlops deploy` adds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyinfra.context import host
from pyinfra.operations import python

from onprem_mlops.artifacts.publish import StorePublisher
from onprem_mlops.deployment import Work, context_maker
from onprem_mlops.endpoint import endpoint
from onprem_mlops.engine.connector import ENDPOINT
from onprem_mlops.engine.run import MakeContext
from onprem_mlops.errors import MlopsError
from onprem_mlops.plan import Graph, Phase, PlannedStep, plan
from onprem_mlops.site import Site, load_site
from onprem_mlops.site.material import SiteMaterial

_values: dict[str, dict[str, Any]] = {}
"""Step → node → what it returned; pyinfra finishes one operation on all nodes before the next begins."""

_failed: dict[str, str] = {}
"""Step → the first node that it failed on: pyinfra itself goes on with the next one."""

_plans: dict[tuple[str, str], tuple[Site, Graph, MakeContext]] = {}
"""Inventory folder and phase → its plan: the script is read once for each node, the plan is made once."""


def _planned(folder: str, phase: Phase) -> tuple[Site, Graph, MakeContext]:
    if (folder, phase.name) not in _plans:
        site = load_site(Path(folder))
        work = Work(site, plan(site, (phase,)), phase.name, planning=False)
        make_context = context_maker(work, StorePublisher(site), SiteMaterial(site))
        _plans[folder, phase.name] = site, work.graph, make_context
    return _plans[folder, phase.name]


def lay_down(phase: Phase) -> None:
    """Add every step of the phase that runs on the current pyinfra host."""
    folder: str = host.data.get("mlops_inventory")
    site, graph, make_context = _planned(folder, phase)
    node = site.node(host.name)
    host.connector_data[ENDPOINT] = endpoint(site, node)
    for planned in graph:
        # Added on every node, also where the step has nothing to do: pyinfra tells operations of one line apart by
        # their number on the node, and runs equal numbers side by side.
        python.call(
            name=planned.id,
            function=_step,
            planned=planned,
            graph=graph,
            make_context=make_context,
            _serial=planned.step.rolling,
        )


def _step(planned: PlannedStep, graph: Graph, make_context: MakeContext) -> None:
    node = next((one for one in planned.nodes if one.name == host.name), None)
    if node is None or (planned.step.only == "any" and node != planned.nodes[0]):
        return
    if planned.step.rolling and planned.id in _failed:
        raise MlopsError(f"{node.name} was left as it is: {planned.id} failed on {_failed[planned.id]}")
    by_id = {one.id: one for one in graph}
    inputs: dict[str, Any] = {}
    for name in planned.step.inputs:
        producer = by_id[f"{planned.role.name}.{name}"]
        if producer.id in _failed:
            raise MlopsError(f"it needs {producer.id}, which failed on {_failed[producer.id]}")
        inputs[name] = producer.given(_values.get(producer.id, {}))
    try:
        value = planned.step.function(make_context(planned, node), **inputs)
    except BaseException:
        _failed.setdefault(planned.id, node.name)
        raise
    _values.setdefault(planned.id, {})[node.name] = value
