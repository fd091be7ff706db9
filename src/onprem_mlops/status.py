"""What each node of a site says of itself, read over the pinned connections; nothing is changed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from onprem_mlops.console import print_table
from onprem_mlops.endpoint import endpoint
from onprem_mlops.errors import MlopsError
from onprem_mlops.shell import Connection
from onprem_mlops.site import Node, Site

READ = (
    '. /etc/os-release; echo "$PRETTY_NAME"; '
    "systemctl show -p UserspaceTimestamp --value; cut -d' ' -f1 /proc/loadavg; "
    "awk '/MemAvailable/ {print int($2/1024)}' /proc/meminfo; "
    "systemctl list-units --failed --plain --no-legend | awk '{print $1}' | paste -sd' '"
)


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One node's state. Memory is what is available, in MiB; `problem` is why it could not be read."""

    node: str
    address: str
    groups: tuple[str, ...]
    reachable: bool
    release: str = ""
    up_since: str = ""
    load: str = ""
    memory_mib: int = 0
    failed_units: tuple[str, ...] = ()
    problem: str = ""

    def record(self) -> dict[str, Any]:
        """The row as plain data."""
        return asdict(self)


def node_rows(site: Site) -> list[NodeRow]:
    """Read all nodes side by side."""
    with ThreadPoolExecutor(max_workers=32) as pool:
        return list(pool.map(lambda node: _row(site, node), site.nodes))


def _row(site: Site, node: Node) -> NodeRow:
    connection: Connection | None = None
    try:
        connection = Connection(endpoint(site, node))
        lines = (connection.run(READ, timeout=15).text + "\n" * 5).split("\n")
    except MlopsError as error:
        return NodeRow(node.name, str(node.address), node.groups, False, problem=error.message)
    finally:
        if connection is not None:
            connection.close()
    release, since, load, memory, failed = lines[:5]
    return NodeRow(
        node.name, str(node.address), node.groups, True, release, since, load, int(memory or 0), tuple(failed.split())
    )


def show_rows(rows: list[NodeRow]) -> None:
    """Print the rows as a table."""
    table = Table("node", "address", "groups", "state", "release", "up since", "load", "memory free", "failed units")
    for row in rows:
        state = "[green]reachable[/green]" if row.reachable else f"[red]{escape(row.problem)}[/red]"
        memory = f"{row.memory_mib} MiB" if row.reachable else ""
        failed = ", ".join(row.failed_units)
        table.add_row(
            row.node, row.address, ", ".join(row.groups), state, row.release, row.up_since, row.load, memory, failed
        )
    print_table(table)
