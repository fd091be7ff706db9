"""MLflow's service: who gets in, what it shows to whom, and as whom it runs."""

from __future__ import annotations

import base64

import pytest

from onprem_mlops.errors import MlopsError
from onprem_mlops.site.secrets import Secrets
from onprem_mlops.verify.suite import (
    Controller,
    NodeHost,
    Nodes,
    NotChecked,
    Response,
    Site,
    assert_certificate,
    assert_old_tls_is_refused,
    listeners,
)
from roles.mlflow.settings import ADMINISTRATOR, Settings

FOLDER = "/etc/onprem-mlflow"
UNIT = "onprem-mlflow.service"
SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"


@pytest.fixture(scope="module")
def hosts(site: Site, settings: Settings, nodes: Nodes) -> list[NodeHost]:
    """The nodes that serve."""
    return [nodes[node.name] for node in settings.hosts(site)]


@pytest.fixture(scope="module")
def addresses(site: Site, settings: Settings) -> list[str]:
    """Where each of them answers."""
    return [settings.internal_endpoint(site, node) for node in settings.hosts(site)]


@pytest.fixture(scope="module")
def password(site: Site) -> str:
    """The administrator's."""
    try:
        return Secrets.of(site).get("mlflow", "admin_password").reveal()
    except MlopsError as error:
        raise NotChecked(f"the site's secrets cannot be read here: {error.message}", error.advice) from None


def _as(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def _get(controller: Controller, address: str, **headers: str) -> Response:
    return controller.request("GET", address, headers=headers)


def test_certificate(site: Site, settings: Settings, controller: Controller, hosts: list[NodeHost]) -> None:
    """MLflow's certificate is signed by the site's authority, has the service's names, and is good for weeks.

    `./mlops deploy --role mlflow` renews a certificate that is due.
    """
    for host in hosts:
        names = (site.full_name(host.site_node), settings.name(site))
        assert_certificate(controller, host, settings.port, *names)


def test_old_tls_is_refused(site: Site, settings: Settings, controller: Controller, hosts: list[NodeHost]) -> None:
    """MLflow refuses TLS 1.1 and older."""
    for host in hosts:
        # uvicorn ends an old handshake without a word.
        assert_old_tls_is_refused(controller, host, settings.port, site.full_name(host.site_node), silently=True)


@pytest.mark.parametrize(
    "path",
    [
        SEARCH,
        "/",
        "/metrics",
        "/version",
        "/signup",
        "/api/2.0/mlflow-artifacts/artifacts",
        "/api/2.0/mlflow/users/list",
    ],
)
def test_nothing_without_a_login(controller: Controller, addresses: list[str], password: str, path: str) -> None:
    """Without a login MLflow shows nobody anything but that it is well."""
    for address in addresses:
        well = _get(controller, f"{address}/health")
        assert well.status == 200, f"{address}/health: HTTP {well.status}"
        # The control: with a login it is there, so that the refusal is one of the login.
        seen = _get(controller, f"{address}{path}", **_as(ADMINISTRATOR, password))
        assert seen.status == 200, f"{address}{path}: HTTP {seen.status} for the administrator: {seen.text[:200]}"
        refused = _get(controller, f"{address}{path}")
        assert refused.status == 401, f"{address}{path}: HTTP {refused.status} without a login: {refused.text[:200]}"


@pytest.mark.parametrize("name", [ADMINISTRATOR, "root", "mlflow"])
def test_no_password_that_everybody_knows(controller: Controller, addresses: list[str], name: str) -> None:
    """No account has a password that a manual names, its own name, or none."""
    for word in ("password1234", "password", "admin", "mlflow", name, ""):
        answer = _get(controller, f"{addresses[0]}{SEARCH}", **_as(name, word))
        assert answer.status == 401, f"{addresses[0]}: HTTP {answer.status} for {name} with the password {word!r}"


def test_other_names_are_refused(
    site: Site, settings: Settings, controller: Controller, addresses: list[str], password: str
) -> None:
    """A request that names another host is refused, so that no web page can reach MLflow under a name of its own."""
    own = {**_as(ADMINISTRATOR, password), "Host": settings.name(site)}
    for address in addresses:
        well = _get(controller, f"{address}{SEARCH}", **own)
        assert well.status == 200, f"{address}: HTTP {well.status} under the name {settings.name(site)}"
        for name in ("evil.example.com", "localhost", f"evil.{site.domain}"):
            answer = _get(controller, f"{address}{SEARCH}", **{**own, "Host": name})
            assert answer.status == 403, f"{address}: HTTP {answer.status} under the name {name}"


def test_metrics(controller: Controller, addresses: list[str], password: str) -> None:
    """Who may see everything can read how many requests MLflow answers, and how fast."""
    for address in addresses:
        answer = _get(controller, f"{address}/metrics", **_as(ADMINISTRATOR, password))
        assert "mlflow_http_request_duration_seconds" in answer.text, f"{address}: HTTP {answer.status}, no durations"


def test_service_is_nobody(hosts: list[NodeHost], settings: Settings) -> None:
    """MLflow runs as an account of its own, without privileges, which can change neither programs nor settings."""
    for host in hosts:
        found = [one for one in listeners(host) if one.port == settings.port and one.address == host.address]
        assert found, f"{host.name}: nobody listens on {host.address}:{settings.port}"
        user = host.check_output("ps -o user:32= -p %s", str(found[0].pid))
        assert user == "onprem-mlflow", f"{host.name}: MLflow runs as {user}"
        shares = host.lines("ps -o unit:64= -u %s | sort -u | tr -d ' '", user)
        assert shares == [UNIT], f"{host.name}: {user} is also the account of {', '.join(shares)}"
        status = host.check_output("grep -E 'NoNewPrivs|CapEff' /proc/%s/status", str(found[0].pid)).split()
        assert status == ["CapEff:", "0" * 16, "NoNewPrivs:", "1"], f"{host.name}: {' '.join(status)}"
        writable = host.lines(
            "setpriv --reuid=%s --regid=%s --clear-groups "
            f"find {FOLDER} /opt/mlflow /usr/local/lib/onprem-mlflow -writable ! -type l | head -3",
            user,
            user,
        )
        assert not writable, f"{host.name}: {user} can write {', '.join(writable)}"


def test_secrets_are_private(hosts: list[NodeHost]) -> None:
    """MLflow's passwords and keys can be read by root, and what it needs itself by its own account; by nobody else."""
    for host in hosts:
        found = host.lines(f"find {FOLDER} -type f ! -name chain.pem -printf '%p %m %u %g\\n'")
        assert len(found) >= 3, f"{host.name}: only {len(found)} files in {FOLDER}"
        right = ("600 root root", "400 onprem-mlflow root")
        wrong = [line for line in found if line.split(" ", 1)[1] not in right]
        assert not wrong, f"{host.name}: {'; '.join(wrong)}"


def test_secrets_are_not_in_sight(hosts: list[NodeHost]) -> None:
    """No password is in a process's arguments, nor in the service's log."""
    for host in hosts:
        known = (
            f"{{ sed -n 's/^[A-Z_]*\\(PASSWORD\\|KEY\\|SECRET_KEY\\)=//p' {FOLDER}/environment; "
            f"sed -n 's/.*:mlflow[a-z_]*://p' {FOLDER}/databases; }} | sort -u"
        )
        count = int(host.check_output(f"{known} | wc -l"))
        assert count >= 5, f"{host.name}: {count} secrets in {FOLDER} to look for"
        seen = host.check_output(
            f"umask 077; {known} >/run/onprem-verify-mlflow; "
            f"{{ ps -eo args=; journalctl -u {UNIT} -o cat --no-pager; }} | "
            "grep -cFf /run/onprem-verify-mlflow; rm -f /run/onprem-verify-mlflow"
        )
        assert seen == "0", f"{host.name}: {seen} lines show a secret"
