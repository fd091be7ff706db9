"""A service's API, asked on its node: a curl of our own shows what it was told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onprem_mlops.verify.backend import NodeHost
from onprem_mlops.verify.rest import NodeApi
from tests.unit.verify.test_backend import connection, host

__all__ = ["connection", "host"]


@pytest.fixture
def api(host: NodeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeApi:
    """An API whose curl shows its arguments and what it reads; it fails if it is told to delete."""
    curl = tmp_path / "curl"
    curl.write_text('#!/bin/sh\nprintf "%s\\n" "$@"; echo --; cat; case "$*" in *DELETE*) exit 22;; esac\n')
    curl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return NodeApi(host, "https://n1/api", "/etc/token")


def test_what_is_sent_is_no_argument(api: NodeApi) -> None:
    told, _, given = api.fetch("POST", "/users?a=1&b=2", {"password": 'pä"ss\\\n'}).decode().partition("--\n")
    assert "https://n1/api/users?a=1&b=2" in told.splitlines() and "@/etc/token" in told
    assert "password" not in told
    assert json.loads(json.loads(given.removeprefix("data = "))) == {"password": 'pä"ss\\\n'}


def test_somebody_else_asks_without_the_header(api: NodeApi) -> None:
    told, _, given = api.fetch("GET", "/user", login="ada:secret").decode().partition("--\n")
    assert "token" not in told and "secret" not in told
    assert given == 'user = "ada:secret"\n'


def test_a_refusal_is_told_in_the_service_s_words(api: NodeApi) -> None:
    with pytest.raises(AssertionError, match=r"(?s)n1: DELETE /users/ada: .*https://n1/api/users/ada"):
        api.fetch("DELETE", "/users/ada")
