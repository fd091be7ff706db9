"""The command line: commands only, no logic."""

from __future__ import annotations

import importlib
import os
import signal
import sys

import click
import typer
from rich.markup import escape

from onprem_mlops.errors import Interrupted, MlopsError

app = typer.Typer(
    name="mlops",
    help="Build and run an MLOps platform on your own hardware, from one site file.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

COMMAND_MODULES = (
    "run_commands",
    "verify_commands",
    "lab_commands",
    "site_commands",
    "mirror_commands",
    "own_commands",
)
"""Each offers `register(app)`; help lists the commands in this order."""

for _module in COMMAND_MODULES:
    importlib.import_module(f"onprem_mlops.cli.{_module}").register(app)


def run(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 1 failed on nodes, 2 wrong request, 3 interrupted."""
    from onprem_mlops.console import errors

    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = app(arguments, standalone_mode=False, prog_name="./mlops")
    except click.exceptions.Abort:
        errors.print("[red]stopped[/red]")
        return Interrupted.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except KeyboardInterrupt:
        errors.print(
            f"\n[yellow]interrupted.[/yellow] Run it again to go on: ./mlops {escape(' '.join(sys.argv[1:]))}"
        )
        return Interrupted.exit_code
    except MlopsError as error:
        errors.print(f"[red]error[/red] {escape(error.message)}", soft_wrap=True)
        if error.advice:
            errors.print(f"  {escape(error.advice)}", soft_wrap=True)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code if isinstance(code, int) else 0


def _terminated(number: int, frame: object) -> None:
    raise KeyboardInterrupt
