"""Lays down PostgreSQL with the databases and accounts that roles declare."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from onprem_mlops.engine.facts import probe
from onprem_mlops.engine.operations import apt, files, server, shell, systemd
from onprem_mlops.errors import MlopsError
from onprem_mlops.roles import Context, removal, step
from onprem_mlops.site import Hidden

from . import databases, standby
from .settings import RESERVED_CONNECTIONS, Settings

ON = ("services", "database")
NO_CLUSTER = "/etc/postgresql-common/createcluster.d/onprem-mlops.conf"
DATA = "/var/lib/postgresql"
CONFIGURATION = "/etc/postgresql"
CLUSTER = "main"
GIBIBYTE = 1 << 30
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Machine:
    """What the role needs to know of its node. `memory` in bytes."""

    codename: str
    memory: int
    clusters: frozenset[int]
    """Major versions of which there is data."""


@dataclass(frozen=True)
class Paths:
    """Where a major version of Debian's PostgreSQL has its things."""

    major: int

    @property
    def data(self) -> str:
        return f"{DATA}/{self.major}/{CLUSTER}"

    @property
    def programs(self) -> str:
        return f"/usr/lib/postgresql/{self.major}/bin"

    @property
    def configuration(self) -> str:
        return f"{CONFIGURATION}/{self.major}/{CLUSTER}"

    @property
    def settings(self) -> str:
        return f"{self.configuration}/postgresql.conf"

    @property
    def access(self) -> str:
        return f"{self.configuration}/pg_hba.conf"

    @property
    def chain(self) -> str:
        return f"{self.configuration}/chain.pem"

    @property
    def key(self) -> str:
        return f"{self.configuration}/key.pem"

    @property
    def password(self) -> str:
        return f"{self.configuration}/replication.pgpass"

    @property
    def unit(self) -> str:
        return f"postgresql@{self.major}-{CLUSTER}.service"

    @property
    def drop_in(self) -> str:
        return f"/etc/systemd/system/{self.unit}.d/onprem-mlops.conf"

    @property
    def packages(self) -> tuple[str, str]:
        return f"postgresql-{self.major}", f"postgresql-client-{self.major}"


@step(on=ON)
def serve(ctx: Context[Settings]) -> None:
    """The server with its certificate, and the accounts and databases of the roles that are on."""
    if ctx.node != ctx.settings.hosts(ctx.site)[0]:
        return
    machine, paths = _prepare(ctx)
    if probe(f"[ ! -s {paths.data}/PG_VERSION ]").ok:
        standby.refuse_beside_another(_others(ctx), ctx.settings.port)
    _cluster(ctx, paths)
    # Before its configuration changes: with that it no longer knows whom it followed.
    standby.refuse_while_led(paths.data, _others(ctx), ctx.settings.port, unit=paths.unit)
    _configure(ctx, machine, paths)
    standby.promoted("the server leads, and follows nobody")
    databases.laid_down(
        "accounts and databases of the roles that are on",
        [
            databases.Account(one.name, one.connections, ctx.secret_of(role, one.secret))
            for role, one in ctx.site.databases
        ],
        replication=ctx.secret("replication_password") if ctx.settings.standby else None,
    )


@step(on="database", after=("serve",))
def follow(ctx: Context[Settings]) -> None:
    """With a standby: a copy of the databases on the second node, which follows every change."""
    if ctx.node != ctx.settings.standby_of(ctx.site):
        return
    machine, paths = _prepare(ctx)
    # Written before there is a copy: with it the copy is made.
    _replication_password(ctx, paths)
    standby.refuse_without_its_disk(paths.data, paths.settings)
    standby.copied("a copy of the databases", paths.data, paths.programs, _connection(ctx, paths), unit=paths.unit)
    _configure(ctx, machine, paths)


@removal(on=ON)
def remove(ctx: Context[Settings]) -> None:
    """Take the server off. The databases stay, with the account that they belong to, unless the person agreed."""
    every = [Paths(major) for major in ctx.settings.majors.values()]
    for paths in every:
        systemd.gone(f"no {paths.unit}", paths.unit)
        files.absent("no own settings of the unit", paths.drop_in)
        files.no_empty_folders("folder of the unit's settings", paths.drop_in.rpartition("/")[0])
        # Before the packages: purging them drops every database whose configuration is still there.
        files.absent("no configuration", paths.configuration, recursive=True)
    systemd.gone("no postgresql.service", "postgresql.service")
    apt.purged("PostgreSQL, if it came with this role", *(name for paths in every for name in paths.packages))
    files.absent("Debian's packages may make databases again", NO_CLUSTER)
    if ctx.remove_data:
        files.absent("no databases", DATA, recursive=True)
        # Of Debian's own unit, if somebody ran it without our settings: ours logs to the journal.
        files.absent("no logs", "/var/log/postgresql", recursive=True)
        server.no_user("no user postgres", "postgres")
    folders = [f"{base}/{paths.major}" for base in (CONFIGURATION, DATA) for paths in every]
    files.no_empty_folders(
        "folders of this role",
        *folders,
        CONFIGURATION,
        "/var/log/postgresql",
        NO_CLUSTER.rpartition("/")[0],
        "/etc/postgresql-common",
    )
    systemd.reloaded("systemd forgets the unit")


def _prepare(ctx: Context[Settings]) -> tuple[Machine, Paths]:
    """The packages, on a node whose data is of their version."""
    machine = _machine()
    paths = Paths(ctx.settings.majors[machine.codename])
    _refuse_another_major(ctx, machine, paths)
    _install(ctx, machine, paths)
    return machine, paths


def _others(ctx: Context[Settings]) -> tuple[str, ...]:
    """Addresses of the nodes that may have led before."""
    return tuple(str(node.address) for node in ctx.settings.hosts(ctx.site) if node != ctx.node)


def _connection(ctx: Context[Settings], paths: Paths) -> str:
    """How this node's server reaches the other one's to follow it; empty where there is no standby."""
    others = [node for node in ctx.settings.hosts(ctx.site) if node != ctx.node]
    if not others:
        return ""
    authority = ctx.settings_of("node").authority_path
    return (
        f"host={ctx.site.full_name(others[0])} port={ctx.settings.port} user={databases.REPLICATOR} "
        f"sslmode=verify-full sslrootcert={authority} passfile={paths.password} application_name={ctx.node.name}"
    )


def _replication_password(ctx: Context[Settings], paths: Paths) -> None:
    """The password of the account that copies, on both nodes: either may follow the other one day."""
    password = re.sub(r"([:\\])", r"\\\1", ctx.secret("replication_password").reveal())
    line = Hidden(f"*:*:*:{databases.REPLICATOR}:{password}\n")
    files.content("password of the standby", paths.password, line, mode="600", owner="postgres", group="postgres")


def _machine() -> Machine:
    """One look at the node."""
    said = probe(
        '. /etc/os-release; echo "$VERSION_CODENAME"; sed -n "s/^MemTotal: *\\([0-9]*\\) kB/\\1/p" /proc/meminfo; '
        f"ls {DATA}/*/{CLUSTER}/PG_VERSION; true"
    ).text.split()
    return Machine(said[0], int(said[1]) * 1024, frozenset(_majors(said[2:])))


def _majors(paths: list[str]) -> Iterator[int]:
    return (int(path.removeprefix(f"{DATA}/").partition("/")[0]) for path in paths)


def _refuse_another_major(ctx: Context[Settings], machine: Machine, paths: Paths) -> None:
    """Raise MlopsError where there is data of another major version only: an empty server would take its place."""
    if machine.clusters and paths.major not in machine.clusters:
        found = max(machine.clusters)
        raise MlopsError(
            f"{ctx.node.name} has databases of PostgreSQL {found}, and Debian {machine.codename} has "
            f"PostgreSQL {paths.major}, which cannot read them. Nothing was touched there",
            f"Dump them with PostgreSQL {found} (or pg_upgrade them) into {paths.data} first; the role's README says "
            f"how. If they are of no use, remove {DATA}/{found} on the node.",
        )


def _install(ctx: Context[Settings], machine: Machine, paths: Paths) -> None:
    """The packages as the mirror has them; they make no cluster of their own, and only a deploy upgrades them."""
    files.content("Debian's packages make no cluster of their own", NO_CLUSTER, ctx.render("createcluster.conf.j2"))
    apt.packages("PostgreSQL", *paths.packages)
    offered = ctx.package_versions(machine.codename)
    # A minor version is a restart and no more: its files are those of the one before.
    apt.upgraded("PostgreSQL as the mirror has it", {name: offered[name] for name in paths.packages if name in offered})
    apt.held("PostgreSQL changes in a deploy, not at night", *paths.packages)


def _cluster(ctx: Context[Settings], paths: Paths) -> None:
    """An empty cluster, whole before it has its name: whoever is cut off begins anew and loses nothing."""
    data, new = paths.data, f"{paths.data}.mlops-new"
    lost = f"[ ! -e {paths.settings} ]"
    said = f"{data} is gone, and the server that was configured here had its databases in it"
    shell.run(
        "an empty cluster with checksums, if there is none",
        f"{lost} || {{ echo '{said}; mount its disk, or run ./mlops remove --role {ctx.role} to begin anew' >&2; "
        f"exit 1; }}; cd / && rm -rf {new} && install -d -o postgres -g postgres {DATA} {DATA}/{paths.major} && "
        f"runuser -u postgres -- {paths.programs}/initdb -D {new} --data-checksums --encoding=UTF8 --locale=C.UTF-8 "
        "--auth-local=peer --auth-host=reject --no-instructions --no-sync >/dev/null && "
        # What is read lies in /etc; copies beside the data would only mislead.
        f"rm {new}/postgresql.conf {new}/pg_hba.conf {new}/pg_ident.conf && sync -f {new} && mv -T {new} {data}",
        unless=f"[ -s {data}/PG_VERSION ]",
    )


def _configure(ctx: Context[Settings], machine: Machine, paths: Paths) -> None:
    """Certificate, settings, who may log in from where, and the unit; then the server runs with them."""
    files.certificate(
        "certificate of the server", paths.chain, paths.key, ctx.certificate("postgresql"), owner="postgres"
    )
    if ctx.settings.standby:
        _replication_password(ctx, paths)
    access = ctx.render(
        "pg_hba.conf.j2",
        databases=[one for _, one in ctx.site.databases],
        replicator=databases.REPLICATOR,
        followers=_others(ctx),
    )
    files.content("who may log in, and from where", paths.access, access, mode="640", group="postgres")
    memory = memory_of(ctx.settings, machine.memory)
    settings = ctx.render(
        "postgresql.conf.j2",
        paths=paths,
        memory=memory // MEBIBYTE,
        reserved=RESERVED_CONNECTIONS,
        connection=_connection(ctx, paths),
        slot=databases.SLOT,
    )
    files.content("settings of the server", paths.settings, settings)
    unit = ctx.render("unit.conf.j2", paths=paths, memory=memory)
    files.content("settings of the unit", paths.drop_in, unit)
    systemd.service(
        "PostgreSQL with this configuration",
        paths.unit,
        configuration=(paths.settings, paths.drop_in, f"{paths.programs}/postgres"),
        reloads=(paths.access, paths.chain, paths.key),
    )


def memory_of(settings: Settings, installed: int) -> int:
    """Bytes that the server may use: as set, else a quarter of what is installed, but at least 512 MiB.

    Only whole gibibytes of what is installed count, so that another kernel, which shows a little more or less of the
    same memory, does not restart the server.
    """
    if settings.memory is not None:
        return int(settings.memory)
    return max(installed // GIBIBYTE * GIBIBYTE // 4, 512 * MEBIBYTE)
