"""Changes of the whole site that every service has to follow."""

from __future__ import annotations

import re
import uuid
from typing import Any

import pytest
from botocore.exceptions import ClientError

from onprem_mlops.site import load_site
from onprem_mlops.site.secrets import declared
from tests.lab.clients import Client, mlflow_as, s3_as, secret
from tests.lab.services.at_work import comes_back, files, metrics, objects
from tests.lab.sites import TestSite

pytestmark = pytest.mark.lab

SERVICES = ("postgresql", "object_store", "gitea", "gitea_runner", "mlflow", "gateway")
"""In the order in which they need each other."""


def clients_go_on(site: TestSite, *roles: str) -> None:
    """The services that are clients of the others hold, and with them what they are clients of."""
    for role in ("gitea", "gitea_runner", "mlflow", *roles):
        site.run("verify", "infrastructure", "--role", role).must()


def rotatable(site: TestSite) -> list[tuple[str, str]]:
    """Role and name of every secret of the services that may be replaced."""
    return [
        at
        for at, one in declared(load_site(site.folder)).items()
        if at[0] in SERVICES and one.rotatable and not one.given
    ]


def test_secrets_are_rotated_and_clients_go_on(site: TestSite, mlflow: Client, gitea: Client) -> None:
    old = {at: secret(site, *at) for at in rotatable(site)}
    experiment = mlflow.must("POST", "/api/2.0/mlflow/experiments/create", {"name": uuid.uuid4().hex})["experiment_id"]
    artifact = f"/api/2.0/mlflow-artifacts/artifacts/{experiment}/kept.json"
    package = f"/api/packages/onprem-mlops/generic/kept/{uuid.uuid4().hex}/kept.json"
    mlflow.must("PUT", artifact, ["artifact"])
    gitea.must("PUT", package, ["package"])
    # One command is enough for one; of many, each restarts what reads it.
    first, *others = old
    site.run("secrets", "rotate", *first, "--deploy").must()
    for role, name in others:
        site.run("secrets", "rotate", role, name).must()
    site.run("deploy", "infrastructure").must()
    assert [at for at, value in old.items() if secret(site, *at) == value] == []
    again = mlflow_as(site, "admin", secret(site, "mlflow", "admin_password"))
    assert comes_back(lambda: again.must("GET", artifact)) == ["artifact"]
    assert comes_back(lambda: gitea.must("GET", package)) == ["package"]
    # What was given away with the old ones is worth nothing any more.
    assert mlflow.ask("GET", artifact).status == 401
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        s3_as(site, "team-vision", old["object_store", "user_team-vision"]).list_objects_v2(Bucket="datasets")
    clients_go_on(site)


def test_a_new_authority_reaches_every_service(site: TestSite, mlflow: Client, gitea: Client) -> None:
    site.run("certs", "renew-authority", "--yes-destroy", site.name).must()
    site.run("deploy", "infrastructure").must()
    comes_back(lambda: gitea.must("GET", "/api/v1/user"))
    comes_back(lambda: mlflow.must("GET", "/api/2.0/mlflow/experiments/search?max_results=1"))
    clients_go_on(site, "containerd")


def test_a_node_with_another_name_keeps_everything(site: TestSite, s3: Any, mlflow: Client, gitea: Client) -> None:
    kept = [objects(s3), metrics(mlflow), files(gitea)]
    for one in kept:
        one.write(1)
    file = site.folder / "site.yaml"
    before, key = file.read_text(), load_site(site.folder).node("s1").host_key
    # It is the same machine at the same address, which only the site file calls otherwise.
    file.write_text(re.sub(r"- name: s1\b(.*\n.*\n\s+host_key:) generated", rf"- name: store1\1 {key}", before))
    assert load_site(site.folder).node("store1").host_key == key
    try:
        site.run("deploy", "infrastructure").must()
        for one in kept:
            assert comes_back(one.read) == {1}
        for role in ("node", "gitea_runner"):
            site.run("verify", "infrastructure", "--role", role).must()
        assert site.json("plan", "infrastructure")["changed"] == 0
    finally:
        file.write_text(before)
        site.run("deploy", "infrastructure").must()


LEFT = r"""
find /etc /opt /usr/local /srv /var/lib /var/log /var/cache -xdev -not -path '/srv/mirror/*' \
    | grep -iE 'gitea|minio|mlflow|postgres|gateway|runner|haproxy'
cut -d: -f1 /etc/passwd /etc/group | grep -iE 'git|minio|mlflow|postgres|gateway|runner|job|haproxy'
systemctl list-unit-files --no-legend --plain | grep -iE 'gitea|minio|mlflow|postgres|gateway|haproxy'
dpkg-query -W -f '${Package} ${db:Status-Abbrev}\n' | grep -E '^(postgresql|haproxy|git)' | grep -v ' un '
nft list tables | grep onprem_jobs
true
"""


def test_removed_services_leave_nothing_and_come_back(site: TestSite) -> None:
    for role in reversed(SERVICES):
        site.run("remove", "--role", role, "--data", "--yes-destroy", site.name).must()
    left = site.on("s1", LEFT)
    site.run("deploy", "infrastructure").must()
    assert left == ""
    site.run("verify", "infrastructure", "--role", "gateway").must()
