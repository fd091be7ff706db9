"""The server itself: where it listens, as whom it runs, and how it keeps what it was told to keep."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from onprem_mlops.roles import Database
from onprem_mlops.verify.suite import DoesNotApply, NodeHost, Nodes, NotChecked, Site, listeners, until
from roles.postgresql.settings import Settings

LEAST_FREE_BYTES = 1 << 30
LEAST_FREE_SHARE = 0.05
"""Of the databases' disk: with less, a busy hour of the write-ahead log fills it, and the server stops."""

STANDBY_SECONDS = 15
"""How far a standby may be behind: what is lost at most if the server is."""


@pytest.fixture(scope="module")
def host(site: Site, settings: Settings, nodes: Nodes) -> NodeHost:
    """The node that serves."""
    return nodes[settings.hosts(site)[0].name]


@pytest.fixture(scope="module")
def asked(host: NodeHost) -> Callable[[str], list[str]]:
    """What a statement gives the superuser, line by line, fields with `|` between them."""

    def ask(sql: str) -> list[str]:
        return host.lines("cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -c %s", sql)

    try:
        ask("select 1")
    except AssertionError:
        raise NotChecked(f"{host.name}: the database server does not answer", "Other checks say why.") from None
    return ask


@pytest.fixture(scope="module")
def data(asked: Callable[[str], list[str]]) -> str:
    """Where the databases lie."""
    return asked("show data_directory")[0]


@pytest.fixture(scope="module")
def server(host: NodeHost, data: str) -> int:
    """The server's process."""
    return int(host.lines("head -1 %s/postmaster.pid", data)[0])


@pytest.fixture(scope="module")
def unit(host: NodeHost) -> str:
    """The unit of systemd that runs the server."""
    found = host.lines("systemctl list-units --all --plain --no-legend 'postgresql@*.service'")
    assert len(found) == 1, f"{host.name}: there are {len(found)} units of database servers, not one"
    return found[0].split()[0]


def test_addresses(host: NodeHost, settings: Settings) -> None:
    """The database server listens on the node's address and on the loopback, and no other program holds its port.

    A program that holds the port has to go; the server then starts by itself within seconds.
    """
    found = [one for one in listeners(host) if one.port == settings.port and one.protocol == "tcp"]
    others = [f"{one.process} (process {one.pid}) on {one.address}" for one in found if one.process != "postgres"]
    assert not others, f"{host.name}: port {settings.port} is held by {', '.join(others)}"
    addresses = {one.address for one in found}
    assert addresses == {host.address, "127.0.0.1"}, (
        f"{host.name}: port {settings.port} is open on {', '.join(sorted(addresses)) or 'no address'}, "
        f"not on {host.address} and 127.0.0.1"
    )


def test_unit(host: NodeHost, unit: str) -> None:
    """The database server runs, starts at boot, and comes back by itself."""
    properties = "ActiveState,UnitFileState,Restart"
    shown = dict(line.split("=", 1) for line in host.lines("systemctl show %s -p %s", unit, properties))
    if shown["ActiveState"] != "active":
        said = host.run(
            "journalctl -q -o cat -n 40 -u %s | grep -E 'FATAL|PANIC|could not|No space|is held|LISTEN' | tail -2", unit
        )
        raise AssertionError(f"{host.name}: {unit} is {shown['ActiveState']}: {said.stdout.strip() or 'nothing said'}")
    assert shown["UnitFileState"] == "enabled", f"{host.name}: {unit} is {shown['UnitFileState']}: gone after a boot"
    assert shown["Restart"] == "on-failure", f"{host.name}: {unit} restarts {shown['Restart']}"


def test_process_has_no_privileges(host: NodeHost, server: int) -> None:
    """The database server runs as postgres, without privileges, and sees a node that it cannot write to."""
    status = dict(line.split(":\t", 1) for line in host.lines("cat /proc/%s/status", str(server)) if ":\t" in line)
    user = host.check_output("ps -o user:32= -p %s", str(server)).strip()
    assert user == "postgres", f"{host.name}: the database server runs as {user}"
    assert int(status["CapBnd"], 16) == 0, f"{host.name}: the server may gain capabilities {status['CapBnd']}"
    assert status["NoNewPrivs"] == "1", f"{host.name}: the server may gain privileges through programs"
    assert status["Seccomp"] == "2", f"{host.name}: the server may make every system call"
    mounts = host.check_output("cat /proc/%s/mounts", str(server))
    root = [line.split()[3].split(",") for line in mounts.splitlines() if line.split()[1] == "/"]
    assert root and "ro" in root[-1], f"{host.name}: the server's view of the node can be written"


def test_files_are_private(host: NodeHost, data: str, asked: Callable[[str], list[str]]) -> None:
    """Databases, key and rules can be read by the database server's account only, and the rules not changed by it."""
    folder = host.check_output("stat -c '%%a %%U' %s", data)
    assert folder == "700 postgres", f"{host.name}: {data} is {folder}, not 700 postgres"
    loose = host.lines("find %s -perm /o+rwx ! -type l -print -quit", data)
    assert not loose, f"{host.name}: everybody can read {loose[0]}"
    key, rules = asked("select setting from pg_settings where name in ('ssl_key_file', 'hba_file') order by name desc")
    for path, right in ((key, "400 postgres root"), (rules, "640 root postgres")):
        found = host.check_output("stat -c '%%a %%U %%G' %s", path)
        assert found == right, f"{host.name}: {path} is {found}, not {right}"


def test_passwords_are_kept_as_scram(host: NodeHost, asked: Callable[[str], list[str]]) -> None:
    """Of every password the database server keeps a SCRAM verifier, and the superuser has no password at all."""
    kept = asked("select rolname, rolsuper, coalesce(substr(rolpassword, 1, 13), '') from pg_authid where rolcanlogin")
    assert kept, f"{host.name}: there are no accounts"
    for line in kept:
        name, superuser, beginning = line.split("|")
        wanted = "" if superuser == "t" else "SCRAM-SHA-256"
        assert beginning == wanted, f"{host.name}: of {name}'s password it keeps {beginning or 'nothing'}"


def test_only_declared_accounts_log_in(
    site: Site,
    settings: Settings,
    host: NodeHost,
    asked: Callable[[str], list[str]],
    record_property: Callable[[str, object], None],
) -> None:
    """Only accounts of roles that are on can log in, each to one database, and only with TLS and SCRAM.

    What roles that went off have left behind is data: it stays until somebody drops it, and nobody can log in to it.
    """
    names = {database.name for _, database in site.databases}
    rules = asked(
        "select type, database[1], user_name[1], auth_method, array_length(user_name, 1), error from pg_hba_file_rules"
    )
    for rule in rules:
        kind, database, user, method, count, error = rule.split("|")
        assert not error, f"{host.name}: a rule cannot be read: {error}"
        if (kind, user, method) == ("local", "postgres", "peer"):
            continue
        of_standby = settings.standby and (database, user) == ("replication", "replicator")
        right = user == database in names or of_standby
        allowed = kind == "hostssl" and method == "scram-sha-256" and count == "1" and right
        assert allowed, f"{host.name}: a rule lets in what no role asks for: {rule}"
    accounts = set(asked("select rolname from pg_roles where rolcanlogin and not rolsuper and not rolreplication"))
    databases = set(asked("select datname from pg_database where not datistemplate")) - {"postgres"}
    left = [f"account {name}" for name in sorted(accounts - names)]
    left += [f"database {name}" for name in sorted(databases - names)]
    if left:
        record_property("found", f"{host.name}: of no role that is on: {', '.join(left)}")


def test_accounts_own_their_database_and_no_more(site: Site, host: NodeHost, asked: Callable[[str], list[str]]) -> None:
    """Every account owns its database, belongs to no other account, and may hold as many connections as declared."""
    declared: dict[str, Database] = {database.name: database for _, database in site.databases}
    if not declared:
        raise DoesNotApply("no role that is on needs a database")
    found = {}
    for line in asked(
        "select r.rolname, r.rolconnlimit, r.rolsuper or r.rolcreatedb or r.rolcreaterole or r.rolreplication or "
        "r.rolbypassrls, (select count(*) from pg_auth_members where member = r.oid), "
        "(select string_agg(datname, ' ') from pg_database where datdba = r.oid) from pg_roles r where not r.rolsuper"
    ):
        name, *rest = line.split("|")
        found[name] = rest
    for name, database in declared.items():
        assert name in found, f"{host.name}: there is no account {name}, or it is a superuser"
        limit, special, memberships, owned = found[name]
        assert limit == str(database.connections), f"{host.name}: {name} may hold {limit} connections"
        assert special == "f", f"{host.name}: account {name} has rights of an administrator"
        assert memberships == "0", f"{host.name}: account {name} has the rights of others, too"
        assert owned == name, f"{host.name}: account {name} owns {owned or 'no database'}"
    public = asked(
        "select datname from pg_database where datallowconn and has_database_privilege('public', oid, 'CONNECT')"
    )
    assert not public, f"{host.name}: everybody may connect to {', '.join(public)}"


def test_settings_hold(host: NodeHost, asked: Callable[[str], list[str]]) -> None:
    """The database server runs with what its files say, and nothing was set past them.

    `ALTER SYSTEM RESET name` takes back what somebody set by hand; `systemctl restart 'postgresql@*'` ends a wait.
    """
    wrong = asked("select sourcefile, name, error from pg_file_settings where error is not null")
    assert not wrong, f"{host.name}: {'; '.join(wrong)}"
    waiting = asked("select name from pg_settings where pending_restart")
    assert not waiting, f"{host.name}: these wait for a restart: {', '.join(waiting)}"
    past = asked("select name from pg_file_settings where sourcefile like '%.auto.conf'")
    assert not past, f"{host.name}: set by hand with ALTER SYSTEM: {', '.join(past)}"


def test_nothing_acknowledged_is_lost(host: NodeHost, asked: Callable[[str], list[str]]) -> None:
    """What the database server said yes to is on the disk, and a page that the disk changed is found out."""
    names = ("data_checksums", "fsync", "full_page_writes", "synchronous_commit")
    found = dict(line.split("|") for line in asked(f"select name, setting from pg_settings where name in {names!r}"))
    off = [f"{name} is {found.get(name)}" for name in names if found.get(name) != "on"]
    assert not off, f"{host.name}: {'; '.join(off)}"
    broken = asked("select coalesce(datname, 'shared') from pg_stat_database where checksum_failures > 0")
    assert not broken, f"{host.name}: pages that are not as they were written in {', '.join(broken)}"


def test_write_ahead_log_can_be_archived(host: NodeHost, settings: Settings, asked: Callable[[str], list[str]]) -> None:
    """The write-ahead log holds what a standby and a backup to a point in time need, and archiving it works if set."""
    (level,) = asked("show wal_level")
    assert level in ("replica", "logical"), f"{host.name}: wal_level is {level}"
    if not settings.archive_command:
        return
    (line,) = asked(
        "select coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false) from pg_stat_archiver"
    )
    assert line == "f", f"{host.name}: the last try to archive failed: journalctl -u 'postgresql@*'"


def test_statistics(host: NodeHost, asked: Callable[[str], list[str]]) -> None:
    """The database server counts what each statement costs, and keeps no text that may hold a password."""
    asked("select 'verify statistics'")
    (count,) = asked("select count(*) from pg_stat_statements where query like 'select $1%'")
    assert int(count) > 0, f"{host.name}: pg_stat_statements does not know the statement that was just made"
    (texts,) = asked(
        "select count(*) from pg_stat_statements where query ilike '%password%' and query ~ 'SCRAM-SHA-256[$][0-9]'"
    )
    assert texts == "0", f"{host.name}: {texts} statements with a password are kept"


def test_memory_fits(host: NodeHost, unit: str, asked: Callable[[str], list[str]]) -> None:
    """The database server's buffers and the memory of all its sessions fit into what it may use."""
    limit = host.check_output("systemctl show %s -p MemoryMax --value", unit)
    assert limit.isdigit(), f"{host.name}: {unit} may use {limit} memory"
    (wanted,) = asked(
        "select sum(case name when 'shared_buffers' then setting::bigint * 8192 else setting::bigint * 1024 * "
        "current_setting('max_connections')::int end) from pg_settings where name in ('shared_buffers', 'work_mem')"
    )
    (total,) = host.lines("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")
    assert int(limit) <= int(total) * 1024, f"{host.name}: it may use {int(limit) >> 20} MiB, the node has less"
    assert int(wanted) <= int(limit), f"{host.name}: it may want {int(wanted) >> 20} MiB of {int(limit) >> 20} MiB"


def test_disk_has_room(host: NodeHost) -> None:
    """The databases' disk has room.

    With a full disk the server lets nobody in; what it said yes to is kept. Make room at /var/lib/postgresql, or put a
    larger disk there.
    """
    line = host.lines("df -B1 --output=size,avail /var/lib/postgresql")[-1]
    size, free = (int(word) for word in line.split())
    least = max(LEAST_FREE_BYTES, int(size * LEAST_FREE_SHARE))
    assert free >= least, f"{host.name}: at /var/lib/postgresql {free / 1e9:.1f} of {size / 1e9:.1f} GB are free"


def test_version(host: NodeHost, asked: Callable[[str], list[str]]) -> None:
    """The running database server is the installed one, and only a deploy upgrades it."""
    (running,) = asked("show server_version")
    major = re.split(r"[. ]", running)[0]
    status, installed = host.check_output(
        "dpkg-query -W -f '${db:Status-Abbrev} ${Version}' %s", f"postgresql-{major}"
    ).split()
    assert installed.startswith(running.split()[0]), f"{host.name}: {running} runs, {installed} is installed"
    assert status == "hi", f"{host.name}: postgresql-{major} is not held: it may restart at night"


def test_standby_follows(
    site: Site, settings: Settings, nodes: Nodes, host: NodeHost, asked: Callable[[str], list[str]]
) -> None:
    """The standby has what the server has, over TLS, within seconds, and can be read but not written.

    `journalctl -u 'postgresql@*'` on the standby says why it cannot follow. One that was away for too long has to be
    copied anew: the role's README says how.
    """
    follower = settings.standby_of(site)
    if follower is None:
        raise DoesNotApply("the site has no standby")
    streams = asked(
        "select application_name, state, ssl from pg_stat_replication left join pg_stat_ssl using (pid)",
    )
    assert streams == [f"{follower.name}|streaming|t"], (
        f"{host.name}: what follows it: {'; '.join(streams) or 'nobody'}"
    )
    (position,) = asked("select pg_current_wal_lsn()")
    there = nodes[follower.name]

    def has_it() -> bool:
        sql = f"select pg_is_in_recovery() and pg_last_wal_replay_lsn() >= '{position}'"
        return str(there.run("cd / && runuser -u postgres -- psql -XAtqc %s", sql).stdout).strip() == "t"

    caught_up = until(has_it, STANDBY_SECONDS, every=0.5)
    assert caught_up, f"{follower.name}: it is more than {STANDBY_SECONDS} s behind {host.name}, or follows nobody"
    said = there.run("cd / && runuser -u postgres -- psql -XAtqc %s", "create table verify_writes (n int)")
    assert "read-only transaction" in said.stderr, (
        f"{follower.name}: a write there says {said.stderr.strip() or 'done'}"
    )
