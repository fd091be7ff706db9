"""mirror build | list | verify: the artifact store, which the mirror serves to the nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from onprem_mlops.cli.result import Result, writes


def register(app: typer.Typer) -> None:
    """Add the commands."""
    mirror = typer.Typer(help="The artifact store: everything that is laid down.", no_args_is_help=True)
    mirror.command("build")(build)
    mirror.command("list")(list_artifacts)
    mirror.command("verify")(verify)
    app.add_typer(mirror, name="mirror", rich_help_panel="Prepare a site")


@writes("mirror-build/v1")
def build(
    names: Annotated[list[str] | None, typer.Argument(help="Artifacts; default: all that are on.")] = None,
    inventory: Annotated[
        Path | None, typer.Option("-i", "--inventory", help="All that the roles of this site lay down.")
    ] = None,
    source: Annotated[
        Literal["auto", "url", "go"], typer.Option("--source", help="auto (the first that is reachable), url or go.")
    ] = "auto",
    again: Annotated[bool, typer.Option("--again", help="Make the named ones even if they are there.")] = False,
    keep_caches: Annotated[bool, typer.Option("--keep-caches", help="Keep Go's build caches.")] = False,
) -> Result:
    """Fetch or build what is not in the store yet."""
    from onprem_mlops.artifacts.commands import mirror_build
    from onprem_mlops.artifacts.display import BuildDisplay
    from onprem_mlops.console import console

    if inventory is not None:
        from onprem_mlops.artifacts.publish import needed_by
        from onprem_mlops.site import load_site

        names = sorted({*(names or ()), *needed_by(load_site(inventory))})
    with BuildDisplay(console) as display:
        result = mirror_build(names, listener=display, source=source, again=again, keep_build_caches=keep_caches)
    made = ", ".join(result.made) or "nothing to do"
    console.print(f"[green]✔[/green] store {result.store}: {made} in {result.seconds:.1f} s")
    return Result(result.model_dump(mode="json"))


@writes("mirror-list/v1")
def list_artifacts() -> Result:
    """Show the catalogue and what of it the store holds."""
    from rich.table import Table

    from onprem_mlops.artifacts.commands import mirror_list
    from onprem_mlops.artifacts.display import megabytes
    from onprem_mlops.console import print_table

    result = mirror_list()
    table = Table("artifact", "version", "licence", "from", "state", "size", "image")
    for entry in result.artifacts:
        colour = "green" if entry.state == "there" else "yellow"
        table.add_row(
            entry.name,
            entry.version,
            entry.licence,
            entry.stored_source or "|".join(entry.sources),
            f"[{colour}]{entry.state}[/{colour}]",
            megabytes(entry.size) if entry.size else "",
            entry.image or "",
        )
    print_table(table)
    return Result(result.model_dump(mode="json"))


@writes("mirror-verify/v1")
def verify() -> Result:
    """Read every file of the store and compare it with its checksum."""
    from onprem_mlops.artifacts.commands import mirror_verify
    from onprem_mlops.artifacts.display import megabytes
    from onprem_mlops.console import console

    result = mirror_verify()
    for problem in result.problems:
        console.print(f"[red]✘[/red] {problem.artifact}: {problem.file}: {problem.what}")
    colour = "red" if result.problems else "green"
    console.print(
        f"[{colour}]{result.checked} files, {megabytes(result.size)} read, {len(result.problems)} wrong[/{colour}]"
        + (" — `./mlops mirror build` makes them again" if result.problems else "")
    )
    return Result(result.model_dump(mode="json"), exit_code=1 if result.problems else 0)
