"""Options that several commands share."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from onprem_mlops.errors import RequestError

Inventory = Annotated[
    Path,
    typer.Option("-i", "--inventory", help="The site's folder.", envvar="MLOPS_INVENTORY", show_default=True),
]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the result to this file.", metavar="FILE")]
Role = Annotated[str | None, typer.Option("--role", help="Only this role.")]
OnNode = Annotated[str | None, typer.Option("--node", help="Only this node.")]
PhaseName = Annotated[
    str | None, typer.Argument(metavar="[PHASE]", help="planning, infrastructure, integration or acceptance; all.")
]

DEFAULT_INVENTORY = Path("inventories/lab")


def write_json(path: Path | None, schema: str, result: dict[str, Any]) -> None:
    """Write a result with its schema's name, whole or not at all. Nothing if there is no path."""
    if path is None:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps({"schema": f"onprem-mlops/{schema}", **result}, indent=2) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise RequestError(
            f"cannot write {path}: {error.strerror}", "Name a file in a folder that you may write."
        ) from None
