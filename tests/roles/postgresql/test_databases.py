"""What is done inside the server, by what it says it has."""

from __future__ import annotations

from typing import Any

import pytest

from onprem_mlops.site import Hidden
from roles.postgresql.databases import Account, _replication, _statements, is_password, verifier

FROM_A_SERVER = (
    "SCRAM-SHA-256$4096:/UvYLfT1YfABYDLCd5jaTw==$BrZatLsXzaJ51YEAdbbQEqrAWaR8LoYYVfPkwRC2FBQ="
    ":TMzKvfVdRH2htn8/FTeyW6N2nf7oiAqIx44ll9QJmmE="
)
"""What PostgreSQL 15 itself made of the password "correct horse"."""

ACCOUNT = Account("git", 20, Hidden("password of git"))


def server(account: dict[str, Any] | None = None, database: dict[str, Any] | None = None) -> dict[str, Any]:
    """A server that is as it should be, but for what is given."""
    kept = {"right": True, "connections": 20, "password": verifier(ACCOUNT.password)}
    return {
        "accounts": {"postgres": {"right": False, "connections": -1, "password": ""}, "git": kept | (account or {})},
        "databases": {
            "postgres": {"owner": "postgres", "public": False},
            "git": {"owner": "git", "public": False} | (database or {}),
        },
        "statistics": True,
        "slot": False,
    }


def test_a_password_is_known_by_what_a_server_keeps_of_it() -> None:
    assert is_password(Hidden("correct horse"), FROM_A_SERVER)
    assert not is_password(Hidden("wrong horse"), FROM_A_SERVER)


@pytest.mark.parametrize("kept", ["", "md5d41d8cd98f00b204e9800998ecf8427e", "SCRAM-SHA-256$4096:c2FsdA==$AAAA:AAAA"])
def test_what_is_not_of_the_password_is_replaced(kept: str) -> None:
    assert not is_password(Hidden("correct horse"), kept)


def test_a_server_that_is_right_is_left_alone() -> None:
    assert list(_statements([ACCOUNT], server())) == []


def test_an_empty_server_gets_account_and_database() -> None:
    empty = {"accounts": {}, "databases": {"template1": {"owner": "postgres", "public": True}}, "statistics": False}
    done = "\n".join(sql for _, sql in _statements([ACCOUNT], empty))
    assert 'CREATE ROLE "git" LOGIN NOSUPERUSER NOCREATEDB' in done
    assert "CONNECTION LIMIT 20" in done
    assert 'CREATE DATABASE "git" OWNER "git" TEMPLATE template0' in done
    assert 'REVOKE ALL ON DATABASE "git" FROM PUBLIC' in done
    assert 'REVOKE ALL ON DATABASE "template1" FROM PUBLIC' in done
    assert "CREATE EXTENSION" in done


@pytest.mark.parametrize(
    "account, database, sql",
    [
        ({"right": False}, {}, 'ALTER ROLE "git" LOGIN NOSUPERUSER'),
        ({"connections": -1}, {}, "CONNECTION LIMIT 20"),
        ({"password": FROM_A_SERVER}, {}, 'ALTER ROLE "git" PASSWORD '),
        ({}, {"owner": "postgres"}, 'ALTER DATABASE "git" OWNER TO "git"'),
        ({}, {"public": True}, 'REVOKE ALL ON DATABASE "git" FROM PUBLIC'),
    ],
)
def test_what_differs_is_put_right_and_nothing_else(
    account: dict[str, Any], database: dict[str, Any], sql: str
) -> None:
    (done,) = _statements([ACCOUNT], server(account, database))
    assert sql in done[1]


def test_a_password_is_neither_sent_nor_shown() -> None:
    for what, sql in _statements([ACCOUNT], {"accounts": {}, "databases": {}, "statistics": False}):
        assert "password of git" not in what + sql
        assert "SCRAM" not in what


def test_accounts_and_databases_of_others_are_left_alone() -> None:
    state = server()
    state["accounts"]["stray"] = {"right": False, "connections": -1, "password": ""}
    state["databases"]["stray"] = {"owner": "stray", "public": False}
    assert list(_statements([ACCOUNT], state)) == []


def test_a_standby_gets_an_account_and_a_slot_and_loses_them() -> None:
    done = "\n".join(sql for _, sql in _replication(Hidden("password of the standby"), server()))
    assert 'CREATE ROLE "replicator" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE REPLICATION' in done
    assert "pg_create_physical_replication_slot('standby', true)" in done
    state = server() | {"slot": True}
    kept = {"right": True, "connections": 5, "password": verifier(Hidden("password of the standby"))}
    state["accounts"]["replicator"] = kept
    assert list(_replication(Hidden("password of the standby"), state)) == []
    gone = [sql for _, sql in _replication(None, state)]
    assert "DROP ROLE replicator;" in gone[0]
    assert "pg_drop_replication_slot('standby')" in gone[1]


def test_without_a_standby_nothing_is_done_for_one() -> None:
    assert list(_replication(None, server())) == []
