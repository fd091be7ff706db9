"""Who gets in, as clients find it: TLS, passwords, one database for each account."""

from __future__ import annotations

import dataclasses
import re
import shlex
import socket
import ssl
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from onprem_mlops.errors import MlopsError
from onprem_mlops.roles import Database
from onprem_mlops.site import Hidden
from onprem_mlops.site.secrets import Secrets
from onprem_mlops.verify.suite import (
    Controller,
    DoesNotApply,
    NodeHost,
    Nodes,
    NotChecked,
    Site,
    assert_certificate,
    assert_old_tls_is_refused,
    scan_from,
)
from roles.postgresql.settings import Settings

SYSTEM_STORE = "/etc/ssl/certs/ca-certificates.crt"

_CLIENT = r"""
umask 077; pass=$(mktemp) && trap 'rm -f "$pass"' EXIT && cat >"$pass" || exit 125
PGPASSFILE=$pass PGCONNECT_TIMEOUT=10 psql -XAtqw "$@" 2>&1
"""
"""psql with the password from standard input, in a file of its own for as long as it runs."""

ADMINISTRATION = {
    "create database verify_probe": "make a database",
    "create role verify_probe": "make an account",
    "copy (select 1) to program 'true'": "run programs on the node",
    "copy (select 1) to '/dev/null'": "write files on the node",
    "select length(pg_read_file('/etc/passwd'))": "read files of the node",
    "select count(rolpassword) from pg_authid": "read what is kept of passwords",
    "set session_replication_role = replica": "change how the server works",
}
"""What only an administrator may, in SQL and in words."""

_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
"""What a client of PostgreSQL says before it begins TLS."""


@dataclass(frozen=True)
class Client:
    """psql on a node, for one account."""

    host: NodeHost
    server: str
    address: str
    port: int
    account: str
    password: Hidden

    def run(
        self, *sql: str, database: str = "", tls: str = "verify-full", password: Hidden | None = None
    ) -> tuple[int, str]:
        """Exit status and all that psql said to statements in one session; it goes on after one that failed."""
        given = re.sub(r"([:\\])", r"\\\1", (password or self.password).reveal())
        where = (
            f"host={self.server} hostaddr={self.address} port={self.port} user={self.account} "
            f"dbname={database or self.account} sslmode={tls} sslrootcert={SYSTEM_STORE}"
        )
        words = " ".join(shlex.quote(word) for word in (_CLIENT, "sh", where, *(f"-c{one}" for one in sql)))
        done = self.host.feed(f"sh -c {words}", f"*:*:*:*:{given}\n")
        return done.rc, done.stdout.strip()

    def answer(self, sql: str) -> str:
        """What a statement that must succeed gives."""
        status, said = self.run(sql)
        assert status == 0, f"{self.host.name}: {self.account} at {self.server}: {said[-300:]}"
        return said

    def refusal(self, *, database: str = "", tls: str = "verify-full", password: Hidden | None = None) -> str:
        """The server's own words when it lets nobody in this way; empty if it does."""
        status, said = self.run("select 1", database=database, tls=tls, password=password)
        assert status == 0 or "FATAL" in said, f"{self.host.name}: the server did not say no: {said}"
        return said if status else ""

    def each(self, statements: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Each statement and what came of it, in one session."""
        marked = [word for one in statements for word in ("\\echo ==", one)]
        _, said = self.run(*marked)
        parts = re.split(r"^==$", said, flags=re.MULTILINE)[1:]
        assert len(parts) == len(statements), f"{self.host.name}: {self.account} at {self.server}: {said[-300:]}"
        return zip(statements, (part.strip() for part in parts), strict=True)


@pytest.fixture(scope="module")
def host(site: Site, settings: Settings, nodes: Nodes) -> NodeHost:
    """The node that serves. NotChecked if its server does not even answer there."""
    found = nodes[settings.hosts(site)[0].name]
    if found.run("cd / && runuser -u postgres -- psql -XAtqc 'select 1'").rc != 0:
        raise NotChecked(f"{found.name}: the database server does not answer", "Other checks say why.")
    return found


@pytest.fixture(scope="module")
def declared(site: Site) -> list[tuple[str, Database]]:
    """Databases of the roles that are on, with the role."""
    if not site.databases:
        raise DoesNotApply("no role that is on needs a database")
    return list(site.databases)


@pytest.fixture(scope="module")
def clients(
    site: Site, settings: Settings, declared: list[tuple[str, Database]], nodes: Nodes, host: NodeHost
) -> list[Client]:
    """Each account on the node that serves, which has psql: at the node's address if clients may be there."""
    try:
        shown = Secrets.of(site).show()
    except MlopsError as error:
        raise NotChecked(f"the site's secrets cannot be read here: {error.message}", error.advice) from None
    found = []
    for role, database in declared:
        if database.secret not in shown.get(role, {}):
            raise NotChecked(f"there is no secret {role}/{database.secret} yet", "A deploy makes it.")
        here = host.site_node in settings.clients(site, database)
        address, password = host.address if here else "127.0.0.1", shown[role][database.secret]
        found.append(Client(host, settings.name(site), address, settings.port, database.name, password))
    return found


def starttls(plain: socket.socket) -> None:
    """Ask the server for TLS, which a connection to it begins without."""
    plain.sendall(_SSL_REQUEST)
    said = plain.recv(1)
    assert said == b"S", f"{plain.getpeername()[0]}: the server answers {said!r} to a client that asks for TLS"


def test_certificate(site: Site, settings: Settings, controller: Controller, host: NodeHost) -> None:
    """The database server's certificate is signed by the site's authority, has its name, and is good for weeks.

    `./mlops deploy --role postgresql` renews a certificate that is due.
    """
    assert_certificate(controller, host, settings.port, settings.name(site), starttls=starttls)


def test_old_tls_is_refused(site: Site, settings: Settings, controller: Controller, host: NodeHost) -> None:
    """The database server refuses TLS 1.1 and older."""
    assert_old_tls_is_refused(controller, host, settings.port, settings.name(site), starttls=starttls)


def test_other_names_are_refused(site: Site, settings: Settings, controller: Controller, host: NodeHost) -> None:
    """The database server cannot pose as another host of the site."""
    with pytest.raises(ssl.SSLCertVerificationError):
        controller.handshake(host.address, settings.port, f"git.{site.domain}", starttls=starttls)


def test_declared_nodes_reach_it(
    site: Site, settings: Settings, declared: list[tuple[str, Database]], nodes: Nodes
) -> None:
    """Every node from which an account may log in reaches the database server and trusts its certificate."""
    name = settings.name(site)
    for node in {node.name: node for _, database in declared for node in settings.clients(site, database)}:
        said = nodes[node].run(
            "timeout 10 openssl s_client -starttls postgres -connect %s:%s -verify_hostname %s -verify_return_error "
            f"-CAfile {SYSTEM_STORE} </dev/null 2>&1",
            name,
            str(settings.port),
            name,
        )
        assert said.rc == 0 and "Verification: OK" in said.stdout, f"{node}: {said.stdout.strip()[-300:]}"


def test_other_nodes_do_not_reach_it(site: Site, settings: Settings, host: NodeHost, nodes: Nodes) -> None:
    """From a node that no database was declared for, the database server is silent."""
    allowed = {node.name for _, database in site.databases for node in settings.clients(site, database)}
    allowed |= {node.name for node in settings.hosts(site)}
    others = [name for name in nodes if name not in allowed]
    if not others:
        raise DoesNotApply("every node of the site may reach it")
    target = (host.address, settings.port)
    answers = {name: scan_from(nodes[name], [target])[target] for name in others}
    reached = [name for name, answer in answers.items() if answer != "silent"]
    assert not reached, f"{host.name}: port {settings.port} is not silent for {', '.join(reached)}"


def test_accounts_log_in(clients: list[Client]) -> None:
    """Every account logs in over TLS with its password and finds its own database, UTF8 and with checksums.

    `./mlops deploy --role postgresql` lays down accounts, databases and passwords as the site has them.
    """
    for client in clients:
        found = client.answer(
            "select current_user, current_database(), version, getdatabaseencoding(), "
            "current_setting('data_checksums') from pg_stat_ssl where pid = pg_backend_pid() and ssl"
        )
        user, database, version, encoding, checksums = found.split("|")
        assert (user, database) == (client.account, client.account), f"{client.account} is {user} in {database}"
        assert version in ("TLSv1.2", "TLSv1.3"), f"{client.account}: the session uses {version}"
        assert encoding == "UTF8", f"database {database} is {encoding}, not UTF8"
        assert checksums == "on", f"data checksums are {checksums}"


def test_accounts_can_write(clients: list[Client]) -> None:
    """Every account can make a table in its own database and fill it.

    If the message says that no space is left: make room at /var/lib/postgresql, or put a larger disk there.
    """
    for client in clients:
        count = client.answer(
            "begin; create table verify_writes (n int); insert into verify_writes select generate_series(1, 10000); "
            "select count(*) from verify_writes; rollback"
        )
        assert count == "10000", f"{client.account}: of 10000 rows that it wrote it reads {count}"


def test_without_tls_is_refused(clients: list[Client]) -> None:
    """A client without TLS is refused, whatever its password."""
    for client in clients:
        said = client.refusal(tls="disable")
        assert "no encryption" in said, f"{client.account}: without TLS the server says {said or 'welcome'!r}"


def test_wrong_password_is_refused(clients: list[Client]) -> None:
    """A wrong password is refused, and so are those that people try first."""
    for client in clients:
        for password in ("wrong-password", client.account):
            said = client.refusal(password=Hidden(password))
            assert "password authentication failed" in said, f"{client.account} with {password!r}: {said or 'welcome'}"


def test_other_databases_are_refused(clients: list[Client]) -> None:
    """No account gets into another one's database or the server's own, and the superuser into none over the network."""
    for client, neighbour in zip(clients, [*clients[1:], clients[0]], strict=True):
        for other in {neighbour.account, "postgres", "template1"} - {client.account}:
            said = client.refusal(database=other)
            assert "no pg_hba.conf entry" in said, f"{client.account} in {other}: {said or 'welcome'}"
    superuser = dataclasses.replace(clients[0], account="postgres")
    said = superuser.refusal(database=clients[0].account)
    assert "no pg_hba.conf entry" in said, f"postgres over the network: {said or 'welcome'}"


def test_accounts_are_no_administrators(clients: list[Client]) -> None:
    """No account can do what only an administrator of the database server may."""
    for client in clients:
        for sql, said in client.each(list(ADMINISTRATION)):
            if not said and sql.startswith("create"):
                client.answer(sql.replace("create", "drop"))
            assert "permission denied" in said or "must be superuser" in said, (
                f"{client.account} can {ADMINISTRATION[sql]}, or was stopped by something else: {said or 'done'}"
            )
