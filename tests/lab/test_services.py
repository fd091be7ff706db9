"""The services beside the cluster, all at once and through the gateway: what they keep, whatever happens to them."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from onprem_mlops import lab
from onprem_mlops.site import load_site
from onprem_mlops.site.material import authority_file
from onprem_mlops.verify.controller import Controller, Response
from tests.lab.clients import Client, Writer, resolving, secret, writing
from tests.lab.sites import TestSite, made

pytestmark = pytest.mark.lab

SERVICES = ("postgresql", "object_store", "gitea", "gitea_runner", "mlflow", "gateway")
"""In the order in which they need each other."""
PORTS = {"postgresql": 5432, "object_store": 9000, "gitea": 3000, "mlflow": 5000, "gateway": 443}
"""Where each listens on s1."""

ROUNDS = 2
"""How often every service is killed while clients write."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestSite]:
    """The whole lab as `inventories/lab` has it, by the README's first command."""
    with made("lab", "t-services", tmp_path_factory.mktemp("site"), roles=(), booted=False) as site:
        site.run("lab", "up").must()
        yield site


@pytest.fixture(scope="module")
def names(site: TestSite) -> Iterator[None]:
    with resolving(site):
        yield


@pytest.fixture(scope="module")
def gitea(site: TestSite) -> Client:
    """Gitea, as the account that deploys act with: people's passwords are theirs."""
    header = site.on("s1", "cat /etc/gitea/token")
    return Client(site, f"https://git.{load_site(site.folder).domain}", header.partition(": ")[2])


@pytest.fixture(scope="module")
def mlflow(site: TestSite) -> Client:
    """MLflow's administrator."""
    url = f"https://mlflow.{load_site(site.folder).domain}"
    return Client.with_password(site, url, "admin", secret(site, "mlflow", "admin_password"))


@pytest.fixture(scope="module")
def s3(site: TestSite, names: None) -> Any:
    """The object store, as the user of the checks: it may do anything with buckets `verify-…`."""
    loaded = load_site(site.folder)
    return boto3.client(
        "s3",
        endpoint_url=f"https://s3.{loaded.domain}",
        aws_access_key_id="verify",
        aws_secret_access_key=secret(site, "object_store", "user_verify"),
        region_name="us-east-1",
        verify=str(authority_file(loaded)),
        config=Config(s3={"addressing_style": "path"}, connect_timeout=3, read_timeout=10, retries={"max_attempts": 0}),
    )


def unit_of(site: TestSite, service: str) -> str:
    """The systemd unit that listens on the service's port."""
    at = PORTS[service]
    listener = f"ss -Hltnp src {site.spec.node('s1').address}:{at} | sed -n 's/.*pid=\\([0-9]*\\).*/\\1/p;q'"
    return str(comes_back(lambda: _not_empty(site.on("s1", f"ps -o unit:128= -p $({listener})", check=False).strip())))


def _not_empty(text: str) -> str:
    assert text, "nobody listens there"
    return text


def comes_back(check: Callable[[], Any], seconds: float = 90) -> Any:
    """What a check gives as soon as it raises nothing; its last error after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        try:
            return check()
        except (OSError, AssertionError, BotoCoreError, ClientError) as error:
            if time.monotonic() > end:
                raise AssertionError(f"not so after {seconds:.0f} s") from error
            time.sleep(1)


# --- what is written, and how it is found again


def objects(s3: Any) -> Writer:
    bucket = f"verify-{uuid.uuid4().hex[:8]}"
    s3.create_bucket(Bucket=bucket)

    def read() -> set[int]:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        keys = [one["Key"] for page in pages for one in page.get("Contents", ())]
        return {int(key) for key in keys if s3.get_object(Bucket=bucket, Key=key)["Body"].read() == key.encode() * 100}

    return Writer("objects", lambda n: s3.put_object(Bucket=bucket, Key=str(n), Body=str(n).encode() * 100), read)


def metrics(mlflow: Client) -> Writer:
    experiment = mlflow.must("POST", "/api/2.0/mlflow/experiments/create", {"name": uuid.uuid4().hex})["experiment_id"]
    run = mlflow.must("POST", "/api/2.0/mlflow/runs/create", {"experiment_id": experiment})["run"]["info"]["run_id"]

    def write(number: int) -> None:
        metric = {"run_id": run, "key": "n", "value": number, "timestamp": number, "step": number}
        mlflow.must("POST", "/api/2.0/mlflow/runs/log-metric", metric)

    def read() -> set[int]:
        path = f"/api/2.0/mlflow/metrics/get-history?run_id={run}&metric_key=n&max_results=25000"
        return {int(one["step"]) for one in mlflow.must("GET", path).get("metrics", ())}

    return Writer("metrics", write, read)


def files(gitea: Client) -> Writer:
    """Commits, one a file."""
    name = uuid.uuid4().hex[:8]
    new = {"name": name, "auto_init": True, "private": True, "default_branch": "main"}
    at = f"/api/v1/repos/{gitea.must('POST', '/api/v1/user/repos', new)['full_name']}"

    def read() -> set[int]:
        tree = gitea.must("GET", f"{at}/git/trees/main?per_page=10000")["tree"]
        return {int(one["path"]) for one in tree if one["path"].isdigit()}

    return Writer(
        "commits", lambda n: gitea.must("POST", f"{at}/contents/{n}", {"content": "eA==", "message": "x"}), read
    )


class Rows:
    """Rows of a table, written by a client on the server's own node: clients from elsewhere need an account."""

    LOOP = (
        "cd /; for n in $(seq 100000); do [ -e /run/rows.stop ] && exit; "
        'runuser -u postgres -- psql -qXc "insert into kept values ($n)" postgres && echo $n >>/run/rows || sleep 0.2; '
        "done"
    )

    def __init__(self, site: TestSite) -> None:
        self._site = site
        table = "drop table if exists kept; create table kept (n int)"
        site.on("s1", f"cd /; rm -f /run/rows*; runuser -u postgres -- psql -qXc '{table}' postgres")

    def start(self) -> None:
        self._site.on("s1", f"systemd-run -q --unit rows sh -c '{self.LOOP}'")

    def stop(self) -> None:
        self._site.on("s1", "touch /run/rows.stop; while systemctl -q is-active rows; do sleep 0.2; done")

    def lost(self) -> set[int]:
        """Rows that were acknowledged and are not there."""
        read = "cd /; runuser -u postgres -- psql -qXAtc 'select n from kept' postgres"
        there = {int(line) for line in self._site.on("s1", read).split()}
        said = {int(line) for line in self._site.on("s1", "cat /run/rows").split()}
        assert len(said) > 20, "hardly anything was written"
        return said - there


def all_at_work(writers: list[Writer]) -> None:
    """Wait until each has written some more."""
    wanted = {one.name: len(one.acknowledged) + 3 for one in writers}

    def written() -> None:
        idle = [one.name for one in writers if len(one.acknowledged) < wanted[one.name]]
        assert not idle, f"nothing is written any more: {idle}"

    comes_back(written)


def test_nothing_acknowledged_is_lost_when_services_are_killed_under_load(
    site: TestSite, s3: Any, mlflow: Client, gitea: Client
) -> None:
    writers, rows = [objects(s3), metrics(mlflow), files(gitea)], Rows(site)
    units = [unit_of(site, service) for service in PORTS]
    rows.start()
    with writing(writers):
        for _ in range(ROUNDS):
            all_at_work(writers)
            site.on("s1", f"systemctl kill -s KILL --kill-who=all {' '.join(units)}")
        all_at_work(writers)
    rows.stop()
    for one in writers:
        there = comes_back(one.read)
        assert one.refused, f"{one.name}: not one was refused, so nothing was killed under load"
        assert one.acknowledged - there == set(), f"{one.name}: acknowledged and lost"
    assert rows.lost() == set()
    comes_back(lambda: site.run("verify", "infrastructure", "--role", "gateway").must())


def test_services_wait_for_a_database_that_is_down(site: TestSite, mlflow: Client, gitea: Client) -> None:
    database, others = unit_of(site, "postgresql"), [unit_of(site, one) for one in ("gitea", "mlflow")]
    site.on("s1", f"systemctl stop {database}")
    site.on("s1", f"systemctl --no-block restart {' '.join(others)}")
    time.sleep(20)
    site.on("s1", f"systemctl start {database}")
    # Nobody touches them: they find it by themselves.
    comes_back(lambda: gitea.must("GET", "/api/v1/user"))
    comes_back(lambda: mlflow.must("GET", "/api/2.0/mlflow/experiments/search?max_results=1"))
    site.run("plan", "infrastructure").must()
    assert site.json("plan", "infrastructure")["changed"] == 0


def test_restarts_and_a_reboot_keep_everything(
    site: TestSite, tmp_path: Path, s3: Any, mlflow: Client, gitea: Client
) -> None:
    kept = [objects(s3), metrics(mlflow), files(gitea)]
    for one in kept:
        one.write(1)
    for service in PORTS:
        site.on("s1", f"systemctl restart {unit_of(site, service)}")
    for one in kept:
        assert comes_back(one.read) == {1}
        one.write(2)
    lab.reboot(site.spec, "s1")
    for one in kept:
        assert comes_back(one.read, 150) == {1, 2}
    site.run("deploy", "infrastructure").must()
    assert site.json("plan", "infrastructure")["changed"] == 0


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


def test_secrets_are_rotated_by_one_command(site: TestSite, s3: Any, mlflow: Client, gitea: Client) -> None:
    commits, values = files(gitea), metrics(mlflow)
    old = secret(site, "gitea", "database_password")
    for role, name in (("gitea", "database_password"), ("mlflow", "database_password"), ("mlflow", "storage_key")):
        site.run("secrets", "rotate", role, name, "--deploy").must()
    assert secret(site, "gitea", "database_password") != old
    comes_back(lambda: commits.write(1))
    comes_back(lambda: values.write(1))
    assert (commits.read(), values.read()) == ({1}, {1})
    for role in ("gitea", "mlflow", "postgresql"):
        site.run("verify", "infrastructure", "--role", role).must()


def test_a_port_that_is_taken_is_named(site: TestSite) -> None:
    unit, address = unit_of(site, "mlflow"), site.spec.node("s1").address
    squatter = f"systemd-run -q --collect --unit squatter python3 -m http.server --bind {address} 5000"
    site.on("s1", f"systemctl stop {unit} && {squatter}")
    try:
        failed = site.run("deploy", "infrastructure", "--role", "mlflow").must(1)
        assert "mlflow.serve" in failed.output
        assert "s1" in failed.output
        assert "Traceback" not in failed.output
    finally:
        site.on("s1", "systemctl stop squatter")
    site.run("deploy", "infrastructure", "--role", "mlflow").must()


def test_a_name_that_does_not_resolve_is_found_and_mended(site: TestSite) -> None:
    name = f"postgresql.{load_site(site.folder).domain}"
    site.on(
        "s1", f"sed -i 's/{name}/nowhere.invalid/' /etc/hosts; systemctl restart {unit_of(site, 'gitea')}", check=False
    )
    found = site.json("verify", "infrastructure", "--role", "node", "--node", "s1", code=1)
    assert any(name in one["message"] for one in found["checks"] if one["outcome"] == "failed")
    site.run("deploy", "infrastructure").must()
    site.run("verify", "infrastructure", "--role", "gitea").must()


def test_a_new_authority_reaches_every_service(site: TestSite, s3: Any, mlflow: Client, gitea: Client) -> None:
    site.run("certs", "renew-authority", "--yes-destroy", site.name).must()
    site.run("deploy", "infrastructure").must()
    comes_back(lambda: gitea.must("GET", "/api/v1/user"))
    comes_back(lambda: mlflow.must("GET", "/api/2.0/mlflow/experiments/search?max_results=1"))
    for role in ("postgresql", "object_store", "gateway"):
        site.run("verify", "infrastructure", "--role", role).must()


LEFT = r"""
find /etc /opt /usr/local /srv /var/lib /var/log /var/cache -xdev -not -path '/srv/mirror/*' \
    | grep -iE 'gitea|minio|mlflow|postgres|gateway|runner|haproxy'
cut -d: -f1 /etc/passwd /etc/group | grep -iE 'git|minio|mlflow|postgres|gateway|runner|job|haproxy'
systemctl list-unit-files --no-legend --plain | grep -iE 'gitea|minio|mlflow|postgres|gateway|haproxy'
dpkg-query -W -f '${Package} ${db:Status-Abbrev}\n' | grep -E '^(postgresql|haproxy|git)' | grep -v ' un '
nft list ruleset | grep -iE 'gitea|runner'
true
"""


def test_removed_services_leave_nothing_and_come_back(site: TestSite) -> None:
    for role in reversed(SERVICES):
        site.run("remove", "--role", role, "--data", "--yes-destroy", site.name).must()
    left = site.on("s1", LEFT)
    site.run("deploy", "infrastructure").must()
    assert left == ""
    site.run("verify", "infrastructure", "--role", "gateway").must()
