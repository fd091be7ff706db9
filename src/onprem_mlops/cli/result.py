"""What a command gives: an exit code, and a result that `--json FILE` writes down. One way for every command."""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from onprem_mlops.errors import MlopsError, RequestError

PRIVATE = 0o600
"""Mode of a result that may hold secrets. All others are as open as the person's umask lets them be."""


STREAMS: Mapping[str, Callable[[], TextIO]] = {"/dev/stdout": lambda: sys.stdout, "/dev/stderr": lambda: sys.stderr}
"""Names of what this process has open already."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a command did or found."""

    data: dict[str, Any]
    """As `docs/reference/json.md` describes it."""
    exit_code: int = 0
    schema: str = ""
    """Which one, of a command that has several; else its first."""
    error: MlopsError | None = None
    """What to tell the person and to exit with, once the result is written."""


def writes(*schemas: str, mode: int | None = None) -> Callable[[Callable[..., Result]], Callable[..., int]]:
    """Make a command of a function: it takes `--json FILE`, and its result is written there under its schema's name."""
    as_what = " or ".join(f"`{schema}`" for schema in schemas)
    option = typer.Option("--json", metavar="FILE", help=f"Also write the result to this file, as {as_what}.")
    annotation = Annotated[Path | None, option]

    def decorate(function: Callable[..., Result]) -> Callable[..., int]:
        @functools.wraps(function)
        def command(*arguments: Any, json: Path | None = None, **options: Any) -> int:
            if json is not None:
                _refuse_unwritable(json)
            result = function(*arguments, **options)
            if json is not None:
                write_json(json, result.schema or schemas[0], result.data, mode)
            if result.error is not None:
                raise result.error
            return result.exit_code

        signature = inspect.signature(function, eval_str=True)
        parameter = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        command.__annotations__ = {**function.__annotations__, "json": annotation, "return": int}
        vars(command).update(
            schemas=schemas,
            __signature__=signature.replace(
                parameters=[*signature.parameters.values(), parameter], return_annotation=int
            ),
        )
        return command

    return decorate


def write_json(path: Path, schema: str, data: dict[str, Any], mode: int | None = None) -> None:
    """Write a result under its schema's name, whole or not at all; into a pipe or a device as it comes."""
    from onprem_mlops.atomic import write_atomically

    text = json.dumps({"schema": f"onprem-mlops/{schema}", **data}, indent=2) + "\n"
    try:
        if str(path) in STREAMS:
            # Not opened by its name: what is redirected into a file would begin anew there.
            stream = STREAMS[str(path)]()
            stream.write(text)
            stream.flush()
        elif path.exists() and not path.is_file():
            path.write_text(text)
        else:
            write_atomically(path.resolve(), text.encode(), 0o666 & ~_umask() if mode is None else mode)
    except OSError as error:
        raise MlopsError(f"cannot write {path}: {error.strerror}", "All else was done.") from None


def _refuse_unwritable(path: Path) -> None:
    """Before anything is done, so that nobody waits for a deploy whose result is then lost."""
    folder = path.resolve().parent
    if path.is_dir() or not (path.exists() or (folder.is_dir() and os.access(folder, os.W_OK))):
        raise RequestError(f"cannot write {path}", "Name a file in a folder that is there and that you may write.")


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
