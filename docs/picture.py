"""Takes a picture of commands: `python docs/picture.py docs/pictures/lab-up.svg lab up` runs `./mlops lab up`.

Several commands are put into one picture with `--` between them. What they print is shown as it is, without the live
part that a terminal shows meanwhile. No font is fetched from anywhere when the picture is looked at.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from typing import Any  # noqa: E402

import rich.console  # noqa: E402
from rich.terminal_theme import MONOKAI  # noqa: E402

WIDTH = 100
FONT = "font-family: 'DejaVu Sans Mono', 'Cascadia Mono', Menlo, Consolas, monospace;"


class Recording(rich.console.Console):
    """A console that records into one place, whoever makes it."""

    everything: rich.console.Console | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "record": True, "width": WIDTH})
        if not self.stderr:
            if Recording.everything is None:
                Recording.everything = self
            self._record_buffer = Recording.everything._record_buffer


def commands(words: list[str]) -> Iterator[list[str]]:
    """The commands between `--`."""
    while "--" in words:
        at = words.index("--")
        yield words[:at]
        words = words[at + 1 :]
    yield words


def without_fonts(svg: str) -> str:
    """The picture with the fonts that are there instead of one from the network."""
    while (begin := svg.find("@font-face")) >= 0:
        svg = svg[:begin] + svg[svg.index("}", begin) + 1 :].lstrip()
    return svg.replace("font-family: Fira Code, monospace;", FONT).replace("font-family: arial;", FONT)


def main() -> int:
    """Run the commands and write the picture."""
    file, *words = sys.argv[1:]
    rich.console.Console = Recording  # type: ignore[misc]
    from onprem_mlops.cli import run

    shown = Recording()
    code = 0
    for command in commands(words):
        shown.print(f"[bold green]$[/bold green] [bold]./mlops {' '.join(command)}[/bold]", highlight=False)
        code = max(code, run(command))
        shown.print()
    shown.save_svg(file, title=" ", theme=MONOKAI)
    with open(file) as picture:  # noqa: PTH123 - read and written at once
        svg = without_fonts(picture.read())
    with open(file, "w") as picture:  # noqa: PTH123
        picture.write(svg)
    return code


if __name__ == "__main__":
    sys.exit(main())
