"""lab up | status | shell | down | destroy: a small data centre on this machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onprem_mlops.cli.options import Json, write_json
from onprem_mlops.cli.run_commands import confirm_destruction, run_phase
from onprem_mlops.errors import RequestError
from onprem_mlops.paths import REPOSITORY

if TYPE_CHECKING:
    from onprem_mlops.lab import LabSpec
    from onprem_mlops.site import Site

LABS = {"lab": "lab", "ha": "lab-ha"}
"""Names that `--site` takes, and their folders below inventories/."""

SiteName = Annotated[str, typer.Option("--site", help="lab (four nodes) or ha (three control planes).")]
Inventory = Annotated[
    Path | None, typer.Option("-i", "--inventory", help="Any other lab's folder.", envvar="MLOPS_INVENTORY")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    lab = typer.Typer(help="A small data centre of booted nodes on this machine.", no_args_is_help=True)
    for command in (up, status, shell, down, destroy):
        lab.command(command.__name__)(command)
    app.add_typer(lab, name="lab", rich_help_panel="Prepare a site")


def _folder(site: str, inventory: Path | None) -> Path:
    if inventory is not None:
        return inventory
    if site not in LABS:
        raise RequestError(f"there is no lab {site!r}", f"Labs: {', '.join(LABS)}; or name a folder with -i.")
    return REPOSITORY / "inventories" / LABS[site]


def _lab(site: str, inventory: Path | None) -> tuple[Site, LabSpec]:
    from onprem_mlops.lab import LabSpec
    from onprem_mlops.site import load_site

    loaded = load_site(_folder(site, inventory))
    return loaded, LabSpec.from_site(loaded)


def up(
    site: SiteName = "lab",
    inventory: Inventory = None,
    nodes_only: Annotated[bool, typer.Option("--nodes-only", help="Boot the nodes; lay nothing down.")] = False,
    json: Json = None,
) -> int:
    """Boot the nodes, lay down the infrastructure phase, and verify it. What is up already stays."""
    from onprem_mlops.artifacts import Store
    from onprem_mlops.artifacts.display import BuildDisplay
    from onprem_mlops.artifacts.publish import needed_by
    from onprem_mlops.cli.verify_commands import verify_phase
    from onprem_mlops.console import console
    from onprem_mlops.lab import LabSpec
    from onprem_mlops.lab import up as boot
    from onprem_mlops.site.material import ensure_lab_material

    began = time.monotonic()
    loaded, spec = _lab(site, inventory)
    roots = {f"lab-rootfs-{node.release}" for node in spec.nodes}
    with BuildDisplay(console) as display:
        Store().ensure(sorted({*needed_by(loaded), *roots}), display)
    loaded = ensure_lab_material(loaded)
    boot(LabSpec.from_site(loaded), _say)
    if nodes_only:
        return 0
    code = run_phase(loaded.folder, "infrastructure", None, None, json, planning=False)
    if code == 0:
        code = verify_phase(loaded.folder, "infrastructure")
    if code == 0:
        console.print(f"[bold green]The lab is up and verified[/bold green] in {time.monotonic() - began:.0f} s.")
        console.print("  ./mlops kubectl -- get nodes     ./mlops ssh cp1     ./mlops lab down")
    return code


def _say(message: str, node: str | None) -> None:
    from onprem_mlops.console import console

    console.print(f"[dim]lab {node or ''}[/dim] {message}")


def status(site: SiteName = "lab", inventory: Inventory = None, json: Json = None) -> int:
    """Show every node of the lab as it is."""
    from rich.table import Table

    from onprem_mlops.console import console
    from onprem_mlops.lab import status as read

    _, spec = _lab(site, inventory)
    rows = read(spec)
    table = Table("node", "address", "state", "since", "memory")
    for row in rows:
        since = time.strftime("%H:%M:%S", time.localtime(row.since)) if row.since else ""
        memory = f"{row.memory_bytes / 2**20:.0f} MiB" if row.memory_bytes else ""
        colour = "green" if row.state == "running" else "yellow"
        table.add_row(row.node, str(row.address), f"[{colour}]{row.state}[/{colour}]", since, memory)
    console.print(table)
    records = [{"node": row.node, "address": str(row.address), "state": row.state, "since": row.since} for row in rows]
    write_json(json, "lab-status/v1", {"nodes": records})
    return 0


def shell(
    node: Annotated[str, typer.Argument(help="The node's name.")],
    command: Annotated[list[str] | None, typer.Argument(help="A command instead of a shell.")] = None,
    site: SiteName = "lab",
    inventory: Inventory = None,
) -> int:
    """Open a shell on a node over SSH."""
    from onprem_mlops.lab import shell as connect

    _, spec = _lab(site, inventory)
    return connect(spec, node, *(command or ()))


def down(site: SiteName = "lab", inventory: Inventory = None) -> int:
    """Power the nodes off; their disks stay, `lab up` resumes them."""
    from onprem_mlops.lab import down as power_off

    _, spec = _lab(site, inventory)
    power_off(spec, _say)
    return 0


def destroy(
    site: SiteName = "lab",
    inventory: Inventory = None,
    yes_destroy: Annotated[
        str | None, typer.Option("--yes-destroy", metavar="NAME", help="The site's name, instead of typing it.")
    ] = None,
) -> int:
    """Remove the lab: nodes, disks, bridge, keys, secrets. Nothing is left."""
    from onprem_mlops.console import console
    from onprem_mlops.lab import describe_destruction
    from onprem_mlops.lab import destroy as wipe

    loaded, spec = _lab(site, inventory)
    console.print(describe_destruction(spec))
    confirm_destruction(loaded, yes_destroy)
    wipe(spec, _say)
    return 0
