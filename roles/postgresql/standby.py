"""A second server that follows the first: how its copy is made, and how it takes over."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from onprem_mlops.engine.facts import probe
from onprem_mlops.engine.operation import Command, operation
from onprem_mlops.errors import MlopsError

from .databases import PSQL, SLOT

COPY_SECONDS = 6 * 3600
"""How long a copy may take: a terabyte over a gigabit link, and half as long again."""


@operation
def copied(data: str, programs: str, connection: str, *, unit: str) -> Iterator[Command]:
    """A copy of another server's databases, whole before it has its name, that follows the other one from then on.

    MlopsError where there are databases that follow nobody: they may hold what the other server does not have.
    """
    kind = probe(
        f"if [ -e {data}/standby.signal ]; then echo follows; elif [ -s {data}/PG_VERSION ]; then echo own; fi"
    )
    if kind.text.strip() == "own":
        raise MlopsError(
            f"{data} holds databases that were written here, and this node is to follow another one",
            f"Once nothing in them is needed, on the node: systemctl stop {unit}; mv {data} {data}.old; "
            f"systemctl unmask {unit}. Then deploy again.",
        )
    if kind.text.strip() == "follows":
        return
    new = f"{data}.mlops-new"
    folder = data.rpartition("/")[0]
    yield Command(
        f"cd / && rm -rf {new} && install -d -o postgres -g postgres {folder.rpartition('/')[0]} {folder} && "
        f"runuser -u postgres -- {programs}/pg_basebackup -D {new} -d {shlex.quote(connection)} -X stream -S {SLOT} "
        f"-c fast --no-password && rm -f {new}/postgresql.auto.conf && "
        f"install -o postgres -g postgres -m 600 /dev/null {new}/postgresql.auto.conf && "
        f"install -o postgres -g postgres -m 600 /dev/null {new}/standby.signal && sync -f {new} && mv -T {new} {data}",
        timeout=COPY_SECONDS,
    )


def refuse_while_led(data: str, others: tuple[str, ...], port: int, *, unit: str) -> None:
    """Raise MlopsError where a server that is to lead follows one that still runs.

    Two that lead would each take what the other never sees.

    Args:
        data: its folder. That it follows is known from there, too: a server that is down says nothing.
        others: addresses of the servers that may have led before.
        port: of all of them.
        unit: what runs each of them.
    """
    sender = "coalesce((select sender_host from pg_stat_wal_receiver where status = 'streaming'), '')"
    said = probe(f'{PSQL} -c "select pg_is_in_recovery(), {sender}"').text.strip()
    if not said.startswith("t") and not probe(f"[ -e {data}/standby.signal ]").ok:
        return
    for other in filter(None, (said.partition("|")[2], *_answering(others, port))):
        raise MlopsError(
            f"the server at {other} still runs, and this one, which follows it, is to take its place",
            f"Stop it first, on its node: systemctl mask --now {unit}. Then deploy again. If it is to go on leading, "
            "say so in site.yaml.",
        )


def _answering(others: tuple[str, ...], port: int) -> list[str]:
    return [one for one in others if probe(f"timeout 5 bash -c 'exec 3<>/dev/tcp/{one}/{port}'").ok]


def refuse_beside_another(others: tuple[str, ...], port: int) -> None:
    """Raise MlopsError where a server that has no databases is to lead beside one that has them."""
    for other in _answering(others, port):
        raise MlopsError(
            f"this node has no databases, and the server at {other} runs: with empty ones here, all that it has would "
            "be gone for the services",
            "If that is the standby of this node, say in site.yaml that it leads (settings.postgresql.primary) and "
            "deploy; this node then copies it. The role's README has the steps.",
        )


def refuse_without_its_disk(data: str, settings: str) -> None:
    """Raise MlopsError where a server that was configured here lacks even the folder of its databases' version."""
    folder = data.rpartition("/")[0]
    if probe(f"[ -e {settings} ] && [ ! -e {folder} ]").ok:
        raise MlopsError(
            f"{folder} is gone, and the server that was configured here had its databases in it; a copy would fill "
            "another disk",
            f"Mount its disk. If it is lost and {folder.rpartition('/')[0]} is where a copy belongs: mkdir {folder}.",
        )


@operation
def promoted() -> Iterator[Command]:
    """A server that followed another one leads from now on."""
    if probe(f"{PSQL} -c 'select pg_is_in_recovery()'").text.strip() == "t":
        yield Command(f"{PSQL} -c 'select 1 / pg_promote(true, 60)::int'", timeout=120)
