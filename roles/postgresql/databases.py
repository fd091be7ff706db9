"""Accounts and databases inside the server: what is there, what is missing, and passwords that are never sent."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onprem_mlops.engine.facts import probe
from onprem_mlops.engine.operation import Command, operation
from onprem_mlops.events import Diff
from onprem_mlops.site import Hidden

PSQL = "cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1"
"""As the superuser over the server's socket, which nobody else may use."""

REPLICATOR = "replicator"
"""The account that a standby copies with. It reads every database, and can log in to none."""

SLOT = "standby"
"""What keeps the write-ahead log that a standby has not got yet."""

ITERATIONS = 4096
"""Rounds of SCRAM, as the server itself makes them."""

_VERIFIER = re.compile(r"SCRAM-SHA-256\$(\d+):([^$]+)\$([^:]+):(.+)")

_STATE = """
select json_build_object(
  'accounts', (select json_object_agg(rolname, json_build_object(
      'right', rolcanlogin and not (rolsuper or rolcreatedb or rolcreaterole or rolbypassrls)
          and rolreplication = (rolname = 'replicator'),
      'connections', rolconnlimit, 'password', coalesce(rolpassword, '')))
    from pg_authid where rolname !~ '^pg_'),
  'databases', (select json_object_agg(datname, json_build_object(
      'owner', pg_get_userbyid(datdba),
      'public', has_database_privilege('public', oid, 'CONNECT') or has_database_privilege('public', oid, 'TEMPORARY')))
    from pg_database where datallowconn),
  'statistics', exists (select from pg_extension where extname = 'pg_stat_statements'),
  'slot', exists (select from pg_replication_slots where slot_name = 'standby'))
"""

_QUIET = "SET log_min_error_statement = panic;"
"""What fails is said to us, not to the log: it may be a statement with a password's verifier."""


@dataclass(frozen=True)
class Account:
    """An account, and its database of the same name."""

    name: str
    connections: int
    password: Hidden


@operation
def laid_down(accounts: Sequence[Account], *, replication: Hidden | None) -> Iterator[Command]:
    """Each account with its own database, its password and its limit; nobody else may connect to a database.

    Accounts and databases that are not asked for are left alone: they are somebody's data.

    Args:
        accounts: what the roles that are on ask for.
        replication: password of the account that a standby copies with; None if there is no standby.
    """
    now = _state()
    statements = [*_statements(accounts, now), *_replication(replication, now)]
    if statements:
        yield Command(
            PSQL,
            stdin="\n".join([_QUIET, *(statement for _, statement in statements)]) + "\n",
            diff=Diff("accounts and databases", "", "".join(f"{what}\n" for what, _ in statements)),
            timeout=600,
        )


def _state() -> Mapping[str, Any]:
    """What is in the server; nothing if there is none that answers, as in a plan of the first deploy."""
    said = probe(f"{PSQL} -c {shlex.quote(' '.join(_STATE.split()))}")
    return json.loads(said.text) if said.ok else {"accounts": {}, "databases": {}, "statistics": False, "slot": False}


def _statements(accounts: Sequence[Account], now: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is to do, each in words without a secret and as SQL."""
    for account in accounts:
        yield from _account(account, now["accounts"].get(account.name), "NOREPLICATION")
        yield from _database(account, now["databases"].get(account.name))
    ours = {account.name for account in accounts}
    for name, database in now["databases"].items():
        if database["public"] and name not in ours:
            yield f"database {name}: for its owner only", f'REVOKE ALL ON DATABASE "{name}" FROM PUBLIC;'
    if not now["statistics"]:
        yield "statistics of statements", "CREATE EXTENSION IF NOT EXISTS pg_stat_statements;"


def _replication(password: Hidden | None, now: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if password is not None:
        yield from _account(Account(REPLICATOR, 5, password), now["accounts"].get(REPLICATOR), "REPLICATION")
        if not now["slot"]:
            yield "slot of the standby", f"SELECT pg_create_physical_replication_slot('{SLOT}', true);"
        return
    if REPLICATOR in now["accounts"]:
        yield f"account {REPLICATOR}: gone, there is no standby", f"DROP ROLE {REPLICATOR};"
    if now["slot"]:
        ended = f"FROM pg_replication_slots WHERE slot_name = '{SLOT}' AND active"
        yield (
            "slot of the standby: gone",
            f"SELECT pg_terminate_backend(active_pid, 5000) {ended}; SELECT pg_drop_replication_slot('{SLOT}');",
        )


def _account(account: Account, found: Mapping[str, Any] | None, replication: str) -> Iterator[tuple[str, str]]:
    role, limit = f'ROLE "{account.name}"', f"CONNECTION LIMIT {account.connections}"
    rights = f"LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE {replication} NOBYPASSRLS {limit}"
    if found is None:
        yield f"account {account.name}: new, at most {account.connections} connections", f"CREATE {role} {rights};"
    elif not found["right"] or found["connections"] != account.connections:
        yield f"account {account.name}: at most {account.connections} connections", f"ALTER {role} {rights};"
    if found is None or not is_password(account.password, found["password"]):
        yield f"account {account.name}: password", f"ALTER {role} PASSWORD '{verifier(account.password)}';"


def _database(account: Account, found: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    name = f'DATABASE "{account.name}"'
    if found is None:
        yield (
            f"database {account.name}: new",
            f'CREATE {name} OWNER "{account.name}" TEMPLATE template0 ENCODING UTF8 '
            "LC_COLLATE 'C.UTF-8' LC_CTYPE 'C.UTF-8';",
        )
    elif found["owner"] != account.name:
        yield f"database {account.name}: its owner", f'ALTER {name} OWNER TO "{account.name}";'
    if found is None or found["public"]:
        yield f"database {account.name}: for its owner only", f"REVOKE ALL ON {name} FROM PUBLIC;"


def verifier(password: Hidden, salt: bytes = b"", iterations: int = ITERATIONS) -> str:
    """What a server keeps of a password (RFC 5803): enough to check it, too little to log in with."""
    salt = salt or os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.reveal().encode(), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    keys = ":".join(base64.b64encode(key).decode() for key in (stored, hmac.digest(salted, b"Server Key", "sha256")))
    return f"SCRAM-SHA-256${iterations}:{base64.b64encode(salt).decode()}${keys}"


def is_password(password: Hidden, kept: str) -> bool:
    """Whether what a server keeps is of this password. False for what is not SCRAM, such as MD5."""
    match = _VERIFIER.fullmatch(kept)
    if match is None:
        return False
    return hmac.compare_digest(verifier(password, base64.b64decode(match[2]), int(match[1])), kept)
