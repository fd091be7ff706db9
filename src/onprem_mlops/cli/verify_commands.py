"""verify: whether what the site file says holds, as seen from the nodes and by real clients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onprem_mlops.cli.options import (
    DEFAULT_INVENTORY,
    Inventory,
    OnNode,
    PhaseName,
    Role,
)
from onprem_mlops.cli.result import Result, writes
from onprem_mlops.errors import MlopsError
from onprem_mlops.verify.results import SCHEMA

Junit = Annotated[Path | None, typer.Option("--junit", help="Also write JUnit XML to this file.", metavar="FILE")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel="Run a phase")(verify)


@writes(SCHEMA)
def verify(
    phase: PhaseName = None,
    inventory: Inventory = DEFAULT_INVENTORY,
    role: Role = None,
    node: OnNode = None,
    junit: Junit = None,
) -> Result:
    """Check a phase (or all) on the nodes; exit 0 all holds, 1 something does not, 2 it could not be checked."""
    return verify_phase(inventory, phase, role, node, junit)


def verify_phase(
    inventory: Path,
    phase: str | None,
    role: str | None = None,
    node: str | None = None,
    junit: Path | None = None,
) -> Result:
    """Verify and show what was found."""
    from onprem_mlops.console import console
    from onprem_mlops.plan import load_phases, site_roles
    from onprem_mlops.site import load_site
    from onprem_mlops.site.material import authority_pem
    from onprem_mlops.verify.display import VerifyDisplay, show
    from onprem_mlops.verify.runner import verify
    from onprem_mlops.verify.selection import select

    site = load_site(inventory)
    authority_pem(site)  # without one there is nothing to verify: no client could trust the site
    phases = load_phases(phase)
    units = select(site, site_roles(site), phases, role=role, node=node)
    display = VerifyDisplay(console)
    with display.showing():
        result = verify(site, units, [one.name for one in phases], on_message=display)
    show(result, console)
    error = None
    if junit is not None:
        try:
            result.write_junit(junit)
        except OSError as problem:
            error = MlopsError(f"cannot write {junit}: {problem.strerror}", "All else was done.")
    return Result(result.record(), exit_code=result.exit_code, error=error)
