"""Shows how the store fills: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from onprem_mlops.artifacts.events import (
    BuildEvent,
    Damaged,
    Failed,
    Finished,
    Planned,
    Started,
    Waiting,
)
from onprem_mlops.artifacts.manifest import ArtifactManifest


def megabytes(size: int) -> str:
    """`size` bytes for people."""
    return f"{size / 1e6:.1f} MB"


class BuildDisplay:
    """A listener for `Store.ensure` that prints. Use it as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._began: dict[str, tuple[float, Started]] = {}
        self._to_make = 0
        self._done = 0
        self._live = (
            Live(console=self._console, get_renderable=self._running, refresh_per_second=4, transient=True)
            if self._console.file.isatty()
            else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, event: BuildEvent) -> None:
        """Hear one event."""
        match event:
            case Planned():
                self._to_make = len(event.to_make)
                if event.to_make:
                    self._say(f"artifacts: {len(event.there)} there, {self._to_make} to make")
            case Started():
                self._began[event.name] = (time.monotonic(), event)
                self._say(f"  {event.name} {event.version}: from {event.source} ({event.why})")
            case Waiting():
                self._say(f"  {event.name}: another run is making it; waiting")
            case Finished():
                self._ended(event.name)
                how = "there already" if event.reused else f"from {event.source}"
                self._say(
                    f"[green]✓[/] {event.name} {event.version}: {event.seconds:.1f} s, {megabytes(event.size)}, {how}"
                    f" ({self._done}/{self._to_make})"
                )
            case Failed():
                self._ended(event.name)
                self._say(f"[red]✗[/] {event.name}: failed after {event.seconds:.1f} s")
            case Damaged():
                self._say(f"[yellow]![/] {event.name}: {event.file} is damaged; made again")

    def _ended(self, name: str) -> None:
        self._began.pop(name, None)
        self._done += 1

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)

    def _running(self) -> Table:
        table = Table.grid(padding=(0, 2))
        now = time.monotonic()
        for began, event in list(self._began.values()):
            table.add_row("…", event.name, event.version, f"from {event.source}", f"{now - began:.0f} s")
        if self._to_make:
            table.add_row("", f"{self._done} of {self._to_make} done")
        return table


def inventory(manifests: tuple[ArtifactManifest, ...], made: tuple[str, ...] = ()) -> Table:
    """The final table: what, which version, from where, how long, how big."""
    table = Table(box=None, header_style="bold")
    for title in ("artifact", "version", "from", "made with"):
        table.add_column(title, overflow="fold")
    for title in ("seconds", "size"):
        table.add_column(title, justify="right")
    for manifest in manifests:
        size = sum(file.size for file in manifest.files)
        seconds = f"{manifest.seconds:.1f}" if manifest.name in made else "·"
        row = (manifest.name, manifest.version, manifest.source, manifest.made_with, seconds, megabytes(size))
        table.add_row(*row)
    return table
