"""What is wrong with a service is named, by what meets it first."""

from __future__ import annotations

import secrets

import pytest

from onprem_mlops.site import load_site
from onprem_mlops.verify.controller import Controller, Response
from tests.lab.clients import Client
from tests.lab.services.at_work import PORTS, comes_back, unit_of
from tests.lab.sites import TestSite

pytestmark = pytest.mark.lab


def test_a_service_that_is_down_is_named_at_the_gateway(site: TestSite, mlflow: Client) -> None:
    def refused() -> Response:
        answer = mlflow.ask("GET", "/health")
        assert answer.status == 503
        return answer

    unit = unit_of(site, "mlflow")
    site.on("s1", f"systemctl stop {unit}")
    try:
        said = comes_back(refused)
        assert said.text.startswith(mlflow.url.removeprefix("https://"))
        assert "retry-after" in said.headers
        found = site.json("verify", "infrastructure", "--role", "gateway", code=1)
        assert any("HTTP 503" in one["message"] for one in found["checks"] if one["outcome"] == "failed")
    finally:
        site.on("s1", f"systemctl start {unit}")
    comes_back(lambda: mlflow.must("GET", "/api/2.0/mlflow/experiments/search?max_results=1"))


def test_nobody_tells_a_service_another_address_than_his_own(site: TestSite, gitea: Client) -> None:
    loaded, path = load_site(site.folder), f"/{secrets.token_hex(8)}"
    told = {"X-Forwarded-For": "203.0.113.6", "X-Real-IP": "203.0.113.6", "Forwarded": "for=203.0.113.6"}
    Controller(loaded).request("GET", f"{gitea.url}{path}", headers=told)
    logged = site.on("s1", f"sleep 1; journalctl -u gitea -o cat --since=-1min | grep -F {path}")
    # Its log has the request, with the client that the gateway saw.
    assert "203.0.113.6" not in logged


@pytest.mark.parametrize("role", ["postgresql", "gitea", "mlflow"])
def test_a_port_that_is_taken_is_named_with_its_holder(site: TestSite, role: str) -> None:
    unit, address, port = unit_of(site, role), site.spec.node("s1").address, PORTS[role]
    squatter = f"systemd-run -q --collect --unit squatter python3 -m http.server --bind {address} {port}"
    site.on("s1", f"systemctl stop {unit} && {squatter}")
    try:
        failed = site.run("deploy", "infrastructure", "--role", role).must(1)
    finally:
        site.on("s1", "systemctl stop squatter")
    assert f"{role}.serve" in failed.output
    assert "s1" in failed.output
    assert str(port) in failed.output and "python3" in failed.output
    assert "Traceback" not in failed.output
    site.run("deploy", "infrastructure", "--role", role).must()


def test_a_name_that_does_not_resolve_is_found_and_mended(site: TestSite) -> None:
    name = f"postgresql.{load_site(site.folder).domain}"
    site.on(
        "s1", f"sed -i 's/{name}/nowhere.invalid/' /etc/hosts; systemctl restart {unit_of(site, 'gitea')}", check=False
    )
    found = site.json("verify", "infrastructure", "--role", "node", "--node", "s1", code=1)
    assert any(name in one["message"] for one in found["checks"] if one["outcome"] == "failed")
    site.run("deploy", "infrastructure").must()
    site.run("verify", "infrastructure", "--role", "gitea").must()
