"""The graph of steps, from phases, roles and a site."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from onprem_mlops import plan as planning
from onprem_mlops.errors import RequestError
from onprem_mlops.paths import REPOSITORY
from onprem_mlops.plan import Phase, Use, needs, plan
from onprem_mlops.site import Node, Site, load_site
from onprem_mlops.site.role import Role
from onprem_mlops.steps import step

NODES = tuple(
    Node.model_construct(name=name, address=f"10.77.9.{at}", groups=groups)
    for at, (name, groups) in enumerate(
        {"c1": ("control",), "c2": ("control",), "w1": ("worker",), "w2": ("worker",)}.items(), start=1
    )
)


def nothing(ctx: Any) -> None:
    """A step's body is never run by the planner."""


def role(**steps: dict[str, Any]) -> SimpleNamespace:
    """A role's `deploy.py` with these steps, in this order."""
    module = SimpleNamespace()
    for line, (name, declared) in enumerate(steps.items(), start=1):
        inputs = declared.pop("inputs", ())
        namespace: dict[str, Any] = {}
        source = "\n" * line + f"def {name}({', '.join(('ctx', *inputs))}): pass"
        exec(compile(source, "deploy.py", "exec"), namespace)  # noqa: S102 - steps are told apart by their lines
        setattr(module, name, step(**declared)(namespace[name]))
    return module


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, SimpleNamespace]:
    found: dict[str, SimpleNamespace] = {
        "base": role(setup={"on": "all"}, packages={"on": "all", "after": ("setup",)}),
        "store": role(serve={"on": "control", "only": "first"}),
        "cluster": role(
            init={"on": "control", "only": "first"},
            joined={"on": ("control", "worker")},
            token={"on": "control", "only": "first", "inputs": ("joined", "init")},
            join={"on": "worker", "inputs": ("token",)},
        ),
    }
    roles = {name: Role(name, Path(), name, cast("Any", None)) for name in found}
    monkeypatch.setattr(planning, "site_roles", lambda site: roles)
    monkeypatch.setattr(planning, "deploy_module", lambda role: found[role.name])
    return found


SITE = Site.model_construct(
    name="t", nodes=NODES, role_settings=cast("Any", {"base": 1, "store": 1, "cluster": 1}), folder=Path()
)
PHASE = Phase(
    "infrastructure",
    "8–14",
    "t",
    (
        Use("base", steps={"packages": needs("store.serve")}),
        Use("store", here=("base.setup",)),
        Use("cluster", after=("store",), here=("base",)),
    ),
)


def ids(graph: planning.Graph) -> list[str]:
    return [one.id for one in graph]


def of(graph: planning.Graph, identity: str) -> planning.PlannedStep:
    return next(one for one in graph if one.id == identity)


def test_every_step_comes_after_what_it_needs(modules: dict[str, SimpleNamespace]) -> None:
    graph = plan(SITE, (PHASE,))
    order = ids(graph)
    assert len(order) == 7
    for one in graph:
        assert all(order.index(need) < order.index(one.id) for need in one.after | one.here)


def test_needs_of_single_steps_of_roles_and_on_the_same_node(modules: dict[str, SimpleNamespace]) -> None:
    graph = plan(SITE, (PHASE,))
    assert of(graph, "base.packages").after == {"base.setup", "store.serve"}
    assert of(graph, "store.serve").here == {"base.setup"}
    assert of(graph, "cluster.join").after == {"cluster.token", "store.serve"}
    assert of(graph, "cluster.join").here == {"base.setup", "base.packages"}


def test_where_steps_run(modules: dict[str, SimpleNamespace]) -> None:
    graph = plan(SITE, (PHASE,))
    assert [node.name for node in of(graph, "cluster.init").nodes] == ["c1"]
    assert [node.name for node in of(graph, "cluster.join").nodes] == ["w1", "w2"]
    assert [node.name for node in of(graph, "base.setup").nodes] == ["c1", "c2", "w1", "w2"]


def test_one_node_brings_only_the_steps_whose_values_it_needs(modules: dict[str, SimpleNamespace]) -> None:
    graph = plan(SITE, (PHASE,), node="w2")
    assert [node.name for node in of(graph, "cluster.join").nodes] == ["w2"]
    assert [node.name for node in of(graph, "base.setup").nodes] == ["w2"]
    assert "cluster.token" in ids(graph)
    assert "store.serve" not in ids(graph)


def test_one_role(modules: dict[str, SimpleNamespace]) -> None:
    assert ids(plan(SITE, (PHASE,), role="store")) == ["store.serve"]


def test_a_role_that_is_off_is_no_need(modules: dict[str, SimpleNamespace]) -> None:
    site = SITE.model_copy(update={"role_settings": {"base": 1, "cluster": 1}})
    assert of(plan(site, (PHASE,)), "base.packages").after == {"base.setup"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"role": "stroe"}, "there is no role 'stroe' here\ndid you mean \"store\"?"),
        ({"node": "w9"}, "there is no node 'w9' here\nknown: c1, c2, w1, w2"),
        ({"role": "store", "node": "w1"}, "nothing to do"),
    ],
)
def test_what_is_not_there_is_said(
    modules: dict[str, SimpleNamespace], arguments: dict[str, str], message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        plan(SITE, (PHASE,), **arguments)
    assert message in str(caught.value)


def test_a_circle_is_said(modules: dict[str, SimpleNamespace]) -> None:
    phase = Phase("p", "", "", (Use("base", after=("store",)), Use("store", after=("base",))))
    with pytest.raises(RequestError, match="need each other in a circle"):
        plan(SITE, (phase,))


def test_a_need_that_does_not_exist_is_said(modules: dict[str, SimpleNamespace]) -> None:
    phase = Phase("p", "", "", (Use("base", after=("store.serv",)), Use("store")))
    with pytest.raises(RequestError, match=r"role base needs store.serv, but role store has no step serv"):
        plan(SITE, (phase,))


@pytest.mark.parametrize(
    ("name", "advice"), [("infrastructur", 'did you mean "infrastructure"?'), ("x", "phases: "), ("gpu", "--role gpu")]
)
def test_a_phase_that_does_not_exist_is_said(name: str, advice: str) -> None:
    with pytest.raises(RequestError, match="there is no phase") as refusal:
        planning.load_phase(name)
    assert advice in refusal.value.advice


@pytest.mark.parametrize(
    ("node", "steps"),
    [
        (None, {"gpu.remove": {"g1", "g2"}, "gpu.remove_from_cluster": {"cp1"}}),
        ("g1", {"gpu.remove": {"g1"}}),
        ("cp1", {"gpu.remove_from_cluster": {"cp1"}}),
    ],
)
def test_a_removal_waits_only_for_what_is_removed(node: str | None, steps: dict[str, set[str]]) -> None:
    graph = planning.removal_plan(load_site(REPOSITORY / "inventories" / "lab-gpu"), "gpu", node)
    assert {one.id: {each.name for each in one.nodes} for one in graph} == steps
    known: set[str] = set()
    for one in graph:
        assert one.after <= known
        known.add(one.id)


def test_a_removal_from_nodes_without_the_role_is_refused() -> None:
    with pytest.raises(RequestError, match="role gpu has nothing to remove on b1"):
        planning.removal_plan(load_site(REPOSITORY / "inventories" / "lab-gpu"), "gpu", "b1")
