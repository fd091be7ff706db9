"""plan, deploy, remove: what touches nodes through the engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onprem_mlops.cli.options import DEFAULT_INVENTORY, Inventory, OnNode, PhaseName, Role
from onprem_mlops.cli.result import Result, writes
from onprem_mlops.errors import RequestError

if TYPE_CHECKING:
    from onprem_mlops.deployment import Work
    from onprem_mlops.engine.results import RunResult
    from onprem_mlops.site import Site


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel="Run a phase")(plan)
    app.command(rich_help_panel="Run a phase")(deploy)
    app.command(rich_help_panel="Run a phase")(remove)


@writes("plan/v1")
def plan(
    phase: PhaseName = None,
    inventory: Inventory = DEFAULT_INVENTORY,
    role: Role = None,
    node: OnNode = None,
) -> Result:
    """Show what a deploy would change, with diffs; changes nothing."""
    return run_phase(inventory, phase, role, node, planning=True)


@writes("deploy/v1", "plan/v1")
def deploy(
    phase: PhaseName = None,
    inventory: Inventory = DEFAULT_INVENTORY,
    role: Role = None,
    node: OnNode = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="The same as plan.")] = False,
) -> Result:
    """Lay down a phase (or all), in the order of need; running it again changes nothing."""
    return run_phase(inventory, phase, role, node, planning=dry_run)


def run_phase(inventory: Path, phase: str | None, role: str | None, node: str | None, *, planning: bool) -> Result:
    """Plan or deploy; what came of it."""
    from onprem_mlops.deployment import Work
    from onprem_mlops.plan import load_phases, plan
    from onprem_mlops.site import load_site

    site = load_site(inventory)
    graph = plan(site, load_phases(phase), role=role, node=node)
    return _carry_out(Work(site, graph, phase or "all phases", planning))


@writes("deploy/v1", "plan/v1")
def remove(
    role: Annotated[str, typer.Option("--role", help="The role to take off the nodes.")],
    inventory: Inventory = DEFAULT_INVENTORY,
    node: OnNode = None,
    data: Annotated[bool, typer.Option("--data", help="Also remove the data that the role names.")] = False,
    yes_destroy: Annotated[
        str | None, typer.Option("--yes-destroy", metavar="NAME", help="The site's name, instead of typing it.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed.")] = False,
) -> Result:
    """Take a role off its nodes; its data stays unless --data."""
    from onprem_mlops.console import console
    from onprem_mlops.deployment import Work
    from onprem_mlops.plan import removal_plan
    from onprem_mlops.site import load_site

    site = load_site(inventory)
    work = Work(site, removal_plan(site, role, node), f"removal of {role}", dry_run, remove_data=data)
    if not dry_run:
        where = ", ".join(one.name for one in work.graph.nodes)
        what = "and its data, for good" if data else "but keeps its data"
        console.print(f"This takes role [bold]{role}[/bold] off {where} {what}. `--dry-run` shows every command.")
        if needing := site.needing(role):
            console.print(f"Where they are still laid down, these roles lose what they need: {', '.join(needing)}.")
        confirm_destruction(site, yes_destroy)
    return _carry_out(work)


def confirm_destruction(site: Site, given: str | None) -> None:
    """Have the person type the site's name, or check the one given with --yes-destroy."""
    name = given if given is not None else typer.prompt(f"Type the site's name ({site.name}) to go on")
    if name != site.name:
        raise RequestError(f"{name!r} is not the site's name; nothing was touched", f"The site is {site.name}.")


def _carry_out(work: Work) -> Result:
    from onprem_mlops.console import RunDisplay, show_plan, show_summary
    from onprem_mlops.deployment import carry_out

    display = RunDisplay()
    with display.showing():
        result = carry_out(work, display)
    if work.planning:
        show_plan(result)
    show_summary(result)
    return Result(as_json(result), exit_code=0 if result.ok else 1, schema="plan/v1" if work.planning else "deploy/v1")


def as_json(result: RunResult) -> dict[str, Any]:
    """A run's result as `docs/reference/json.md` describes it."""
    return {
        "site": result.site,
        "phase": result.phase,
        "seconds": round(result.seconds, 3),
        "changed": result.changed,
        "failed": list(result.failed),
        "unreachable": dict(result.unreachable),
        "steps": [
            {
                "step": step.step,
                "node": step.node,
                "outcome": step.outcome,
                "seconds": round(step.seconds, 3),
                "operations": step.operations,
                "changed": [change.operation for change in step.changes],
                "note": step.note,
            }
            for step in result.steps
        ],
    }
