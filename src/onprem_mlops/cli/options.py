"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Inventory = Annotated[
    Path,
    typer.Option("-i", "--inventory", help="The site's folder.", envvar="MLOPS_INVENTORY", show_default=True),
]
Role = Annotated[str | None, typer.Option("--role", help="Only this role.")]
OnNode = Annotated[str | None, typer.Option("--node", help="Only this node.")]
PhaseName = Annotated[
    str | None,
    typer.Argument(metavar="[PHASE]", help="planning, infrastructure, integration or acceptance; default: all."),
]

DEFAULT_INVENTORY = Path("inventories/lab")
