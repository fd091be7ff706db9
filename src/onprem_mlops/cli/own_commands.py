"""status, kubeconfig, kubectl, ssh, test, bench: small commands around a site and this repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onprem_mlops.cli.handing_over import hand_over
from onprem_mlops.cli.options import DEFAULT_INVENTORY, Inventory
from onprem_mlops.cli.result import Result, writes
from onprem_mlops.errors import RequestError, suggest
from onprem_mlops.paths import REPOSITORY

if TYPE_CHECKING:
    from onprem_mlops.site import Site

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(rich_help_panel="Look at a site")(status)
    app.command(rich_help_panel="Look at a site")(kubeconfig)
    app.command(rich_help_panel="Look at a site", context_settings=PASS_ON)(kubectl)
    app.command(rich_help_panel="Look at a site", context_settings=PASS_ON)(ssh)
    app.command(rich_help_panel="This repository")(test)
    app.command(rich_help_panel="This repository", context_settings=PASS_ON)(bench)


@writes("status/v1")
def status(inventory: Inventory = DEFAULT_INVENTORY) -> Result:
    """Show each node: reachable, Debian release, up since, load, memory, failed units."""
    from onprem_mlops.site import load_site
    from onprem_mlops.status import node_rows, show_rows

    rows = node_rows(load_site(inventory))
    show_rows(rows)
    return Result({"nodes": [row.record() for row in rows]}, exit_code=0 if all(row.reachable for row in rows) else 1)


def _kubeconfig(site: Site) -> Path:
    path = site.state / "kubeconfig"
    if not path.exists():
        raise RequestError(
            f"site {site.name} has no kubeconfig on this machine yet",
            "`./mlops deploy infrastructure` fetches it once the cluster stands.",
        )
    return path


@writes("kubeconfig/v1")
def kubeconfig(inventory: Inventory = DEFAULT_INVENTORY) -> Result:
    """Print the path of the cluster's admin kubeconfig."""
    from onprem_mlops.site import load_site

    path = _kubeconfig(load_site(inventory))
    typer.echo(path)
    return Result({"path": str(path)})


@writes("command/v1")
def kubectl(context: typer.Context, inventory: Inventory = DEFAULT_INVENTORY) -> Result:
    """Run the site's own kubectl (from the artifact store) with its kubeconfig: kubectl -- get nodes."""
    from onprem_mlops.artifacts import Store
    from onprem_mlops.site import load_site

    config = _kubeconfig(load_site(inventory))
    binary = Store().file("kubernetes", "kubectl").path
    environment = {**os.environ, "KUBECONFIG": str(config)}
    words = _after_dashes(context)
    command = ["kubectl", *words]
    return hand_over(
        command, lambda: subprocess.run(command, executable=binary, env=environment, check=False).returncode
    )


@writes("command/v1")
def ssh(
    context: typer.Context,
    node: Annotated[str, typer.Argument(help="The node's name.")],
    inventory: Inventory = DEFAULT_INVENTORY,
) -> Result:
    """Open a shell on a node, or run a command there: ssh w1 -- uptime. The host key is the pinned one."""
    from onprem_mlops.atomic import write_atomically
    from onprem_mlops.endpoint import endpoint
    from onprem_mlops.site import load_site
    from onprem_mlops.site.safe_file import private_folder

    site = load_site(inventory)
    to = endpoint(site, site.node(node))
    known = private_folder(site.state) / f"known_hosts.{node}"
    write_atomically(known, f"{to.name} {to.host_key}\n".encode())
    options = {
        "UserKnownHostsFile": str(known),
        "HostKeyAlias": to.name,
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
        "LogLevel": "ERROR",
    }
    command = ["ssh", "-i", str(to.key), "-p", str(to.port)]
    command += [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    command += [f"{to.user}@{to.address}"]
    words = _after_dashes(context)
    return hand_over(["ssh", node, *words], lambda: subprocess.run([*command, *words], check=False).returncode)


def _after_dashes(context: typer.Context) -> list[str]:
    return [argument for at, argument in enumerate(context.args) if not (at == 0 and argument == "--")]


@writes("test/v1")
def test(
    tier: Annotated[
        list[str] | None, typer.Option("--tier", help="lint, unit, roles or lab; may be given again. Default: all.")
    ] = None,
    without: Annotated[list[str] | None, typer.Option("--without", help="Leave this tier out, by name.")] = None,
) -> Result:
    """Run the test tiers in order and show what ran."""
    from onprem_mlops.tiers import run_tiers

    counts = run_tiers(tier, without or [])
    tiers = [{"tier": name, **asdict(count)} for name, count in counts.items()]
    bad = any(count.is_bad for count in counts.values())
    return Result({"tiers": tiers, "left_out": without or []}, exit_code=1 if bad else 0)


@writes("bench/v1")
def bench(
    context: typer.Context, name: Annotated[str, typer.Argument(help="A file of bench/, without .py.")]
) -> Result:
    """Run one measurement of bench/ and print its figures with the command that repeats it."""
    known = sorted(path.stem for path in (REPOSITORY / "bench").glob("*.py") if not path.stem.startswith("_"))
    if name not in known:
        raise RequestError(f"there is no measurement {name!r}", suggest(name, known))
    words = _after_dashes(context)
    command = [sys.executable, "-m", f"bench.{name}", *words]
    with tempfile.NamedTemporaryFile("r", prefix="mlops-figures-") as figures:
        environment = {**os.environ, "BENCH_FIGURES": figures.name}  # bench/_measure.py appends them there
        ran = hand_over(
            [name, *words], lambda: subprocess.run(command, cwd=REPOSITORY, env=environment, check=False).returncode
        )
        return replace(ran, data={**ran.data, "figures": [json.loads(line) for line in figures]})
