"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onprem_mlops.paths import REPOSITORY


def in_inventories(name: str) -> Path:
    """The folder of a site of this repository, from wherever the command was called."""
    folder = REPOSITORY / "inventories" / name
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


Inventory = Annotated[
    Path,
    typer.Option(
        "-i", "--inventory", help="The site's folder.", envvar="MLOPS_INVENTORY", show_default="inventories/lab"
    ),
]
Role = Annotated[str | None, typer.Option("--role", help="Only this role.")]
OnNode = Annotated[str | None, typer.Option("--node", help="Only this node.")]
PhaseName = Annotated[
    str | None,
    typer.Argument(metavar="PHASE", help="planning, infrastructure, integration or acceptance; default: all."),
]

DEFAULT_INVENTORY = in_inventories("lab")
