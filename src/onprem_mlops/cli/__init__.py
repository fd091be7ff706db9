"""The command line: commands only, no logic."""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Annotated

import gevent
import typer
from rich.markup import escape
from typer._click.exceptions import ClickException  # typer carries its own click and does not export this one

from onprem_mlops.errors import Interrupted, MlopsError, RequestError
from onprem_mlops.paths import cache_dir, state_dir

app = typer.Typer(
    name="mlops",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(importlib.metadata.version("onprem-mlops"))
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Build and run an MLOps platform on your own hardware, from one site file."""


COMMAND_MODULES = (
    "run_commands",
    "verify_commands",
    "lab_commands",
    "site_commands",
    "mirror_commands",
    "own_commands",
)
"""Each offers `register(app)`; help lists the commands in this order."""

INTERRUPTED_BY_TYPER = 130
"""What typer makes of a KeyboardInterrupt."""

for _module in COMMAND_MODULES:
    importlib.import_module(f"onprem_mlops.cli.{_module}").register(app)


def run(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 1 failed on nodes, 2 wrong request, 3 interrupted."""
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell said to ignore it
        signal.signal(signal.SIGINT, _stop)
    try:
        code = app(arguments, standalone_mode=False, prog_name="./mlops")
    except ClickException as error:
        error.show()
        return RequestError.exit_code
    except MlopsError as error:
        # Problems of a site file stand alone on their lines, so that editors and scripts find path:line:column.
        _show(error.message, error.advice, label=not hasattr(error, "problems"))
        return error.exit_code
    except typer.Abort:
        _show("stopped: a question was not answered; nothing was touched", "Answer it, or give its option.")
        return Interrupted.exit_code
    except KeyboardInterrupt:
        return _interrupted()
    except OSError as error:
        return _own_folders(error) or _no_room(error) or _defect(error)
    except Exception as error:  # noqa: BLE001 - a defect of ours is told as one, its traceback kept aside
        return _defect(error)
    if code == INTERRUPTED_BY_TYPER:
        return _interrupted()
    return code if isinstance(code, int) else 0


def _show(message: str, advice: str, *, label: bool = True) -> None:
    from onprem_mlops.console import errors

    errors.print(f"{'[red]error[/red] ' if label else ''}{escape(message)}", soft_wrap=True)
    if advice:
        errors.print(f"  {escape(advice)}", soft_wrap=True)


def _interrupted() -> int:
    _show("interrupted", f"Run it again to go on where it stopped: ./mlops {' '.join(sys.argv[1:])}")
    return Interrupted.exit_code


def _own_folders(error: OSError) -> int:
    """Tell that the store's or the sites' folder cannot be used and give the exit code; 0 if it was something else."""
    path = Path(str(error.filename)).absolute()
    for name, folder in (("MLOPS_CACHE", cache_dir()), ("MLOPS_STATE", state_dir())):
        if error.errno in (*_REFUSED, *_FULL) and path.is_relative_to(folder):
            _show(f"{path}: {error.strerror}", f"Check {name} ({folder}), its rights and its space.")
            return MlopsError.exit_code if error.errno in _FULL else RequestError.exit_code
    return 0


def _no_room(error: OSError) -> int:
    """Tell that something cannot be written for want of room and give the exit code; 0 if it was something else."""
    if error.errno not in _FULL:
        return 0
    # A file that cannot be made has a name; a write that fails does not say to which file.
    what = error.filename or "what the command prints, or a file of its own,"
    _show(
        f"{what} cannot be written: {error.strerror}",
        f"Make room where its output goes, in {state_dir()} and in {cache_dir()}; then run it again.",
    )
    return MlopsError.exit_code


_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def _defect(error: Exception) -> int:
    log = state_dir() / f"defect-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        log.touch(mode=0o600)
        log.write_text("".join(traceback.format_exception(error)))
    except OSError as refused:
        _show(
            f"{error}; and the folder for what happened, {log.parent}, cannot be written: {refused.strerror}",
            "Check MLOPS_STATE and MLOPS_CACHE, and the rights and the space of your folders.",
        )
        return RequestError.exit_code
    _show(
        f"a defect of onprem-mlops itself: {type(error).__name__}: {error}",
        f"Please report it with {log}. Commands that were running on nodes may have been cut off; run it again.",
    )
    return 1


def _stop(number: int, frame: object) -> None:
    """Interrupt the command, and nothing else.

    A signal meets whatever greenlet happens to run. Raised in the loop it would be printed, and in a thread swallowed.
    """
    hub = gevent.get_hub()
    command = hub.parent
    if command is None or gevent.getcurrent() is command:
        raise KeyboardInterrupt
    hub.loop.run_callback(command.throw, KeyboardInterrupt)
