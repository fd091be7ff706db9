"""Changes of the whole site that every service has to follow."""

from __future__ import annotations

import re
from typing import Any

import pytest

from onprem_mlops.site import load_site
from tests.lab.clients import Client, secret
from tests.lab.services.at_work import comes_back, files, metrics, objects
from tests.lab.sites import TestSite

pytestmark = pytest.mark.lab

SERVICES = ("postgresql", "object_store", "gitea", "gitea_runner", "mlflow", "gateway")
"""In the order in which they need each other."""


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


def test_a_new_authority_reaches_every_service(site: TestSite, s3: Any, mlflow: Client, gitea: Client) -> None:
    site.run("certs", "renew-authority", "--yes-destroy", site.name).must()
    site.run("deploy", "infrastructure").must()
    comes_back(lambda: gitea.must("GET", "/api/v1/user"))
    comes_back(lambda: mlflow.must("GET", "/api/2.0/mlflow/experiments/search?max_results=1"))
    for role in ("postgresql", "object_store", "gateway"):
        site.run("verify", "infrastructure", "--role", role).must()


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
        for role in ("node", "postgresql", "gitea_runner", "gateway"):
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
