"""lab up | status | shell | down | destroy: a small data centre on this machine."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onprem_mlops.cli.handing_over import hand_over
from onprem_mlops.cli.options import in_inventories
from onprem_mlops.cli.result import Result, writes
from onprem_mlops.cli.run_commands import confirm_destruction, run_phase
from onprem_mlops.cli.verify_commands import verify_phase
from onprem_mlops.errors import RequestError

if TYPE_CHECKING:
    from onprem_mlops.lab import LabSpec
    from onprem_mlops.site import Site

LABS = {"lab": "lab", "ha": "lab-ha", "gpu": "lab-gpu"}
"""Names that `--site` takes, and their folders below inventories/."""

SiteName = Annotated[
    str, typer.Option("--site", help="lab (four nodes), ha (three control planes) or gpu (GPU nodes).")
]
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
    return in_inventories(LABS[site])


def _lab(site: str, inventory: Path | None) -> tuple[Site, LabSpec]:
    from onprem_mlops.lab import LabSpec
    from onprem_mlops.site import load_site

    loaded = load_site(_folder(site, inventory))
    return loaded, LabSpec.from_site(loaded)


@writes("lab-up/v1")
def up(
    site: SiteName = "lab",
    inventory: Inventory = None,
    nodes_only: Annotated[bool, typer.Option("--nodes-only", help="Boot the nodes; lay nothing down.")] = False,
) -> Result:
    """Boot the nodes, lay down the infrastructure phase, and verify it. What is up already stays."""
    from onprem_mlops.artifacts.publish import needed_by
    from onprem_mlops.console import console
    from onprem_mlops.lab import LabSpec
    from onprem_mlops.lab import up as boot
    from onprem_mlops.lab.host import require_root
    from onprem_mlops.site.material import ensure_lab_material

    require_root()
    began = time.monotonic()
    loaded, spec = _lab(site, inventory)
    roots = {f"lab-rootfs-{node.release}" for node in spec.nodes}
    if code := _fill_store(sorted({*needed_by(loaded), *roots})):
        return Result({"site": loaded.name, "boot_seconds": None, "deploy": None, "verify": None}, exit_code=code)
    loaded = ensure_lab_material(loaded)
    booting = time.monotonic()
    boot(LabSpec.from_site(loaded), _say)
    done: dict[str, Any] = {"site": loaded.name, "boot_seconds": round(time.monotonic() - booting, 3)}
    code = 0 if nodes_only else _lay_down(loaded, done)
    done["seconds"] = round(time.monotonic() - began, 3)
    if code == 0 and not nodes_only:
        console.print(f"[bold green]The lab is up and verified[/bold green] in {done['seconds']:.0f} s.")
        where = "" if site == "lab" and inventory is None else f" -i {inventory or Path('inventories', LABS[site])}"
        next_commands = (f"kubectl{where} -- get nodes", f"ssh cp1{where}", f"lab down{where}")
        console.print("\n".join(f"  ./mlops {one}" for one in next_commands), soft_wrap=True)
    return Result({"deploy": None, "verify": None, **done}, exit_code=code)


def _fill_store(names: list[str]) -> int:
    """Make what the store lacks, in a process of its own (see `__main__`); gives its exit code."""
    from onprem_mlops.artifacts import Store
    from onprem_mlops.cli.handing_over import hand_over

    if not Store().missing(names):
        return 0
    command = [sys.executable, "-m", "onprem_mlops", "mirror", "build", *names]
    return hand_over(command, lambda: subprocess.run(command, check=False).returncode).exit_code


def _lay_down(site: Site, done: dict[str, Any]) -> int:
    """Deploy, and if that went well verify; puts both results into `done` and gives the exit code."""
    deployed = run_phase(site.folder, "infrastructure", None, None, planning=False)
    done["deploy"] = deployed.data
    if deployed.exit_code:
        return deployed.exit_code
    verified = verify_phase(site.folder, "infrastructure")
    done["verify"] = verified.data
    return verified.exit_code


def _say(message: str, node: str | None) -> None:
    from onprem_mlops.console import console

    console.print(f"[dim]lab {node or ''}[/dim] {message}")


@writes("lab-status/v1")
def status(site: SiteName = "lab", inventory: Inventory = None) -> Result:
    """Show every node of the lab as it is."""
    from rich.table import Table

    from onprem_mlops.console import print_table
    from onprem_mlops.lab import status as read

    _, spec = _lab(site, inventory)
    rows = read(spec)
    table = Table("node", "address", "state", "since", "memory")
    for row in rows:
        since = time.strftime("%H:%M:%S", time.localtime(row.since)) if row.since else ""
        memory = f"{row.memory_bytes / 2**20:.0f} MiB" if row.memory_bytes else ""
        colour = "green" if row.state == "running" else "yellow"
        table.add_row(row.node, str(row.address), f"[{colour}]{row.state}[/{colour}]", since, memory)
    print_table(table)
    records = [{"node": row.node, "address": str(row.address), "state": row.state, "since": row.since} for row in rows]
    return Result({"nodes": records})


@writes("command/v1")
def shell(
    node: Annotated[str, typer.Argument(help="The node's name.")],
    command: Annotated[list[str] | None, typer.Argument(help="A command instead of a shell.")] = None,
    site: SiteName = "lab",
    inventory: Inventory = None,
) -> Result:
    """Open a shell on a node over SSH."""
    from onprem_mlops.lab import shell as connect

    _, spec = _lab(site, inventory)
    words = command or []
    return hand_over(["ssh", node, *words], lambda: connect(spec, node, *words))


@writes("lab-down/v1")
def down(site: SiteName = "lab", inventory: Inventory = None) -> Result:
    """Power the nodes off; their disks stay, `lab up` resumes them."""
    from onprem_mlops.lab import down as power_off

    _, spec = _lab(site, inventory)
    power_off(spec, _say)
    return Result(_of_lab(spec))


@writes("lab-destroy/v1")
def destroy(
    site: SiteName = "lab",
    inventory: Inventory = None,
    yes_destroy: Annotated[
        str | None, typer.Option("--yes-destroy", metavar="NAME", help="The site's name, instead of typing it.")
    ] = None,
) -> Result:
    """Remove the lab: nodes, disks, bridge, keys, secrets. Nothing is left."""
    from onprem_mlops.console import console
    from onprem_mlops.lab import describe_destruction, is_there
    from onprem_mlops.lab import destroy as wipe

    loaded, spec = _lab(site, inventory)
    if is_there(spec):
        console.print(describe_destruction(spec))
        confirm_destruction(loaded, yes_destroy)
    else:
        console.print(f"Lab {spec.site} is not there; whatever may be left of it is removed.")
    wipe(spec, _say)
    return Result(_of_lab(spec))


def _of_lab(spec: LabSpec) -> dict[str, Any]:
    return {"site": spec.site, "nodes": [node.name for node in spec.nodes]}
