"""Services on two nodes: a standby that takes over, objects and tracking that go on while one node is away."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from ruamel.yaml import YAML

from onprem_mlops import lab
from onprem_mlops.site import load_site
from onprem_mlops.verify.resolving import resolving
from tests.lab.clients import Client, mlflow_as, s3_as, secret
from tests.lab.services.at_work import comes_back
from tests.lab.sites import TestSite, made

pytestmark = pytest.mark.lab

ROLES = ("node", "firewall", "mirror", "postgresql", "object_store", "mlflow", "gateway")
BUCKET = f"verify-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestSite]:
    """Mirror and gateway on one node; databases, objects and tracking on two."""
    with made("lab", "t-several", tmp_path_factory.mktemp("site"), roles=ROLES, booted=False) as site:
        change(site, _two_nodes)
        site.run("lab", "up", "--nodes-only").must()
        site.run("deploy", "infrastructure").must()
        yield site


def change(site: TestSite, how: Any) -> None:
    yaml = YAML()
    file = site.folder / "site.yaml"
    written = yaml.load(file)
    how(written)
    yaml.dump(written, file)


def _two_nodes(written: Any) -> None:
    services = next(node for node in written["nodes"] if "services" in node["groups"])
    network = services["address"].rpartition(".")[0]
    written["nodes"] = [services] + [
        {
            "name": f"d{number}",
            "address": f"{network}.4{number}",
            "host_key": "generated",
            "groups": ["database", "storage", "tracking"],
        }
        for number in (1, 2)
    ]
    written["settings"]["postgresql"] = {"standby": True}
    written["settings"]["object_store"] |= {
        "drives": ["/srv/objects/1", "/srv/objects/2"],
        "drives_on_system_disk": True,
    }


@pytest.fixture(scope="module")
def s3(site: TestSite) -> Iterator[Any]:
    with resolving(load_site(site.folder)):
        client = s3_as(site, "verify", secret(site, "object_store", "user_verify"))
        client.create_bucket(Bucket=BUCKET)
        for number in range(20):
            client.put_object(Bucket=BUCKET, Key=str(number), Body=str(number).encode())
        yield client


@pytest.fixture(scope="module")
def mlflow(site: TestSite) -> Client:
    return mlflow_as(site, "admin", secret(site, "mlflow", "admin_password"))


@pytest.fixture(scope="module")
def experiment(mlflow: Client) -> str:
    body = {"name": uuid.uuid4().hex}
    return str(mlflow.must("POST", "/api/2.0/mlflow/experiments/create", body)["experiment_id"])


def all_there(s3: Any) -> None:
    for number in range(20):
        assert s3.get_object(Bucket=BUCKET, Key=str(number))["Body"].read() == str(number).encode()


def found(mlflow: Client, experiment: str) -> None:
    mlflow.must("GET", f"/api/2.0/mlflow/experiments/get?experiment_id={experiment}")


def test_everything_holds_on_two_nodes(site: TestSite) -> None:
    said = site.json("verify", "infrastructure")
    (standby,) = (one for one in said["checks"] if one["name"].startswith("The standby"))
    assert standby["outcome"] == "passed"


def test_the_standby_takes_over_as_the_readme_says(site: TestSite, mlflow: Client, experiment: str) -> None:
    site.on("d1", "systemctl mask --now postgresql@15-main")
    change(site, lambda written: written["settings"]["postgresql"].update(primary="d2"))
    ended = site.run("deploy", "infrastructure").must(1)
    assert "holds databases that were written here" in ended.output
    comes_back(lambda: found(mlflow, experiment))
    site.on("d1", "mv /var/lib/postgresql/15/main /var/lib/postgresql/15/main.old; systemctl unmask postgresql@15-main")
    site.run("deploy", "infrastructure").must()
    site.run("verify", "infrastructure", "--role", "postgresql").must()
    site.run("verify", "infrastructure", "--role", "mlflow").must()


def test_one_of_two_nodes_is_away(site: TestSite, s3: Any, mlflow: Client, experiment: str) -> None:
    lab.power_cut(site.spec, "d1")
    try:
        comes_back(lambda: all_there(s3))
        comes_back(lambda: found(mlflow, experiment))
    finally:
        lab.start(site.spec, "d1", lambda message, node: None)
    site.run("deploy", "infrastructure").must()
    comes_back(lambda: s3.put_object(Bucket=BUCKET, Key="back", Body=b"x"))
    site.run("verify", "infrastructure").must()


def test_a_leader_that_was_installed_anew_is_not_given_empty_databases(site: TestSite) -> None:
    # d2 leads now. Its machine loses everything, and nobody says in the site file that d1 is to take over.
    site.on("d2", "systemctl stop postgresql@15-main; rm -rf /var/lib/postgresql/15 /etc/postgresql/15")
    refused = site.run("deploy", "infrastructure", "--role", "postgresql").must(1)
    assert "this node has no databases" in refused.output
    assert "Traceback" not in refused.output
