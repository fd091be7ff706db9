"""Phases + roles + site → the graph of steps. Pure: needs no node.

A phase file (`deploys/<phase>.py`) names roles and what they need; a role's `deploy.py` names steps and what they need
of each other. Together they give one graph; the engine runs what is ready, side by side.
"""

from __future__ import annotations

import graphlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from onprem_mlops.errors import RequestError, suggest
from onprem_mlops.paths import REPOSITORY
from onprem_mlops.site import Node, Site
from onprem_mlops.site.role import ALL, Role, find_roles
from onprem_mlops.steps import Step, steps_of

PHASES = ("planning", "infrastructure", "integration", "acceptance")
"""The four phases of the 30-day plan, in order."""


@dataclass(frozen=True, slots=True)
class Use:
    """A role in a phase, and what it needs first.

    Each of `after` and `here` names a role or `role.step`. `after`: done on all of its nodes. `here`: done on the same
    node, if it runs there at all. `steps` gives needs of single steps of this role.
    """

    role: str
    after: tuple[str, ...] = ()
    here: tuple[str, ...] = ()
    steps: Mapping[str, Use] = field(default_factory=dict)


def needs(*after: str, here: tuple[str, ...] = ()) -> Use:
    """What one step needs, for `Use.steps`."""
    return Use("", after, here)


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of the 30-day plan. `days` as the plan counts them, `title` its German and English name."""

    name: str
    days: str
    title: str
    uses: tuple[Use, ...]

    @property
    def roles(self) -> tuple[str, ...]:
        """Names of the roles, in the order written."""
        return tuple(use.role for use in self.uses)


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step with its place in the graph. `after` and `here` hold ids of other planned steps.

    `nodes` are all that it runs on, or may run on if it runs on any one of them.
    """

    id: str
    role: Role
    step: Step
    nodes: tuple[Node, ...]
    after: frozenset[str]
    here: frozenset[str]

    def given(self, values: Mapping[str, Any]) -> Any:
        """What steps that take this one's value receive: the one value, or all of them by node."""
        return next(iter(values.values())) if self.step.only else dict(values)


@dataclass(frozen=True, slots=True)
class Graph:
    """Steps in an order in which they could run one after another."""

    steps: tuple[PlannedStep, ...]

    def __iter__(self) -> Iterator[PlannedStep]:
        return iter(self.steps)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every node that a step runs on, in the order first met."""
        return tuple({node.name: node for step in self.steps for node in step.nodes}.values())


def load_phase(name: str) -> Phase:
    """Read `deploys/<name>.py`. Raises RequestError if there is no such phase."""
    if name not in PHASES:
        advice = suggest(name, PHASES, otherwise=f"phases: {', '.join(PHASES)}")
        if (REPOSITORY / "roles" / name / "settings.py").is_file():
            advice = f"it is a role: --role {name}"
        raise RequestError(f"there is no phase {name!r}", advice)
    path = REPOSITORY / "deploys" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"deploys.{name}", path)
    if spec is None or spec.loader is None or not path.exists():
        raise RequestError(f"phase {name} has no file {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    phase: Phase = module.PHASE
    return phase


def load_phases(name: str | None) -> tuple[Phase, ...]:
    """The phase of that name, or all that have a file, in order."""
    if name is not None:
        return (load_phase(name),)
    return tuple(load_phase(one) for one in PHASES)


def site_roles(site: Site) -> dict[str, Role]:
    """All roles there are for a site: ours and its own."""
    own = site.folder / "roles"
    return find_roles(REPOSITORY / "roles", *((own,) if own.is_dir() else ()))


def deploy_module(role: Role) -> ModuleType:
    """A role's `deploy.py`. Raises RequestError if there is none."""
    if not (role.folder / "deploy.py").exists():
        raise RequestError(f"role {role.name} has no {role.folder / 'deploy.py'}", "See docs/architecture.md.")
    return importlib.import_module(f"{role.package}.deploy")


def plan(site: Site, phases: Iterable[Phase], *, role: str | None = None, node: str | None = None) -> Graph:
    """The graph of all steps that the phases ask for, on the site's nodes.

    `role` keeps only that role's steps, `node` only that node (its steps no longer wait for other nodes' ones).
    Raises RequestError for a role or node that is not there, or needs that cannot be met.
    """
    roles = site_roles(site)
    phases = tuple(phases)
    uses = [use for phase in phases for use in phase.uses if site.is_on(use.role)]
    if not uses:
        names = ", ".join(phase.name for phase in phases)
        raise RequestError(
            f"phase {names} lays down nothing on site {site.name}",
            "No role of it is on, or it has none yet (see docs/reference/phases.md).",
        )
    refuse_unknown("role", role, [use.role for use in uses])
    refuse_unknown("node", node, [one.name for one in site.nodes])
    declared = {use.role: steps_of(deploy_module(roles[use.role])) for use in uses}
    planned = [_planned(site, roles[use.role], use, step, declared) for use in uses for step in declared[use.role]]
    kept = [one for one in planned if one.nodes]
    if role is not None:
        kept = [one for one in kept if one.role.name == role]
    if node is not None:
        chosen = [_on_node(one, node) for one in kept if node in {each.name for each in one.nodes}]
        kept = chosen + _producers(chosen, kept)
    if not kept:
        raise RequestError("nothing to do: no step of the phase runs on these nodes", "Check --role and --node.")
    return Graph(_ordered(kept))


def removal_plan(site: Site, role: str, node: str | None) -> Graph:
    """The removals that a role declares, last declared first, on the nodes it runs on."""
    roles = site_roles(site)
    refuse_unknown("role", role, list(roles))
    refuse_unknown("node", node, [one.name for one in site.nodes])
    removals = steps_of(deploy_module(roles[role]), "__removal__")
    if not removals:
        raise RequestError(f"role {role} has no removal")
    found: list[PlannedStep] = []
    for step in reversed(removals):
        if nodes := tuple(one for one in _nodes(site, step) if node in (None, one.name)):
            after = frozenset(one.id for one in found)
            found.append(PlannedStep(f"{role}.{step.name}", roles[role], step, nodes, after, frozenset()))
    if not found:
        where = f"on {node}" if node else "on no node of this site"
        raise RequestError(f"nothing to do: role {role} has nothing to remove {where}", "Check --role and --node.")
    return Graph(tuple(found))


def admissions(site: Site) -> tuple[PlannedStep, ...]:
    """What the roles that are on ask of a node before any run touches it."""
    roles = (role for name, role in site_roles(site).items() if site.is_on(name))
    return tuple(
        PlannedStep(f"{role.name}.{one.name}", role, one, _nodes(site, one), frozenset(), frozenset())
        for role in roles
        if (role.folder / "deploy.py").exists()
        for one in steps_of(deploy_module(role), "__admission__")
    )


def refuse_unknown(what: str, name: str | None, names: list[str]) -> None:
    """RequestError if a role or node is named that is not there."""
    if name is None or name in names:
        return
    advice = suggest(name, set(names)) if names else f"there is no {what} at all"
    if what == "role" and name in PHASES:
        raise RequestError(
            f"{name} is a phase and no role", f"to deploy or verify it, leave --role out; for a role, {advice}"
        )
    raise RequestError(f"there is no {what} {name!r} here", advice)


def _nodes(site: Site, step: Step) -> tuple[Node, ...]:
    nodes = site.nodes if ALL in step.on else site.in_group(*step.on)
    return nodes[:1] if step.only == "first" else nodes


def _planned(site: Site, role: Role, use: Use, step: Step, declared: Mapping[str, tuple[Step, ...]]) -> PlannedStep:
    own = use.steps.get(step.name, Use(""))
    inner = {f"{role.name}.{name}" for name in (*step.inputs, *step.after)}
    after = {one for need in (*use.after, *own.after) for one in _resolve(role.name, need, declared)}
    here = {one for need in (*use.here, *own.here) for one in _resolve(role.name, need, declared)}
    identity = f"{role.name}.{step.name}"
    unknown = inner - {f"{role.name}.{one.name}" for one in declared[role.name]}
    if unknown:
        raise RequestError(f"{identity} needs {', '.join(sorted(unknown))}, which the role does not have")
    return PlannedStep(identity, role, step, _nodes(site, step), frozenset(inner | after), frozenset(here))


def _resolve(role: str, need: str, declared: Mapping[str, tuple[Step, ...]]) -> Iterator[str]:
    """Ids of the steps that a need names. A role that is off or in an earlier phase is no need of this run."""
    name, _, step = need.partition(".")
    if name not in declared:
        return
    found = [one for one in declared[name] if step in ("", one.name)]
    if not found:
        raise RequestError(f"role {role} needs {need}, but role {name} has no step {step}")
    yield from (f"{name}.{one.name}" for one in found)


def _producers(chosen: list[PlannedStep], all_steps: list[PlannedStep]) -> list[PlannedStep]:
    """Steps on other nodes whose values the chosen steps take: adding one node needs a join token from another."""
    by_id = {one.id: one for one in all_steps}
    have = {one.id for one in chosen}
    found: list[PlannedStep] = []
    waiting = list(chosen)
    while waiting:
        one = waiting.pop()
        for name in one.step.inputs:
            identity = f"{one.role.name}.{name}"
            if identity not in have and identity in by_id:
                have.add(identity)
                found.append(by_id[identity])
                waiting.append(by_id[identity])
    return found


def _on_node(planned: PlannedStep, node: str) -> PlannedStep:
    kept = tuple(one for one in planned.nodes if one.name == node)
    return PlannedStep(planned.id, planned.role, planned.step, kept, planned.after, planned.here)


def _ordered(steps: list[PlannedStep]) -> tuple[PlannedStep, ...]:
    """Topological order; needs on steps that are not in this run are dropped."""
    by_id = {one.id: one for one in steps}
    kept = {
        one.id: PlannedStep(one.id, one.role, one.step, one.nodes, one.after & by_id.keys(), one.here & by_id.keys())
        for one in steps
    }
    written = {identity: at for at, identity in enumerate(kept)}
    sorter = graphlib.TopologicalSorter({one.id: one.after | one.here for one in kept.values()})
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        raise RequestError(f"these steps need each other in a circle: {' → '.join(error.args[1])}") from None
    ready: list[str] = []
    order: list[PlannedStep] = []
    while sorter.is_active():
        # Of what could run next, what is written first: a node with a choice takes the one its phase names first.
        ready = sorted([*ready, *sorter.get_ready()], key=written.__getitem__)
        order.append(kept[ready[0]])
        sorter.done(ready.pop(0))
    return tuple(order)


def under_pyinfra() -> bool:
    """Whether a phase file is being read by the plain `pyinfra` command and must lay itself down."""
    pyinfra = sys.modules.get("pyinfra")
    return pyinfra is not None and bool(getattr(pyinfra, "is_cli", False))
