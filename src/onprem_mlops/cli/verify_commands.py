"""verify: whether what the site file says holds, as seen from the nodes and by real clients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onprem_mlops.cli.options import (
    DEFAULT_INVENTORY,
    Inventory,
    Json,
    OnNode,
    PhaseName,
    Role,
    write_json,
)
from onprem_mlops.errors import RequestError

Junit = Annotated[Path | None, typer.Option("--junit", help="Also write JUnit XML to this file.", metavar="FILE")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel="Run a phase")(verify)


def verify(
    phase: PhaseName = None,
    inventory: Inventory = DEFAULT_INVENTORY,
    role: Role = None,
    node: OnNode = None,
    junit: Junit = None,
    json: Json = None,
) -> int:
    """Check a phase (or all) on the nodes; exit 0 all holds, 1 something does not, 2 it could not be checked."""
    return verify_phase(inventory, phase, role, node, junit, json)


def verify_phase(
    inventory: Path,
    phase: str | None,
    role: str | None = None,
    node: str | None = None,
    junit: Path | None = None,
    json: Path | None = None,
) -> int:
    """Verify, show and write down what was found; returns the exit code."""
    from rich.console import Console

    from onprem_mlops.plan import load_phases, site_roles
    from onprem_mlops.site import load_site
    from onprem_mlops.verify.display import VerifyDisplay, show
    from onprem_mlops.verify.results import SCHEMA
    from onprem_mlops.verify.runner import verify
    from onprem_mlops.verify.selection import select

    site = load_site(inventory)
    phases = load_phases(phase)
    units = select(site, site_roles(site), phases, role=role, node=node)
    to = Console(highlight=False)
    display = VerifyDisplay(to)
    with display.showing():
        result = verify(site, units, [one.name for one in phases], on_message=display)
    show(result, to)
    write_json(json, SCHEMA, result.record())
    if junit is not None:
        try:
            result.write_junit(junit)
        except OSError as error:
            raise RequestError(
                f"cannot write {junit}: {error.strerror}", "Name a file in a folder that you may write."
            ) from None
    return result.exit_code
