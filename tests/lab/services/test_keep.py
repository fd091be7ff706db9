"""Services under load, and whatever happens to them: what was acknowledged is kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from onprem_mlops import lab
from tests.lab.clients import Client, writing
from tests.lab.services.at_work import (
    PORTS,
    Rows,
    all_at_work,
    all_refused,
    comes_back,
    files,
    metrics,
    objects,
    unit_of,
)
from tests.lab.sites import TestSite

pytestmark = pytest.mark.lab

ROUNDS = 2
"""How often every service is killed while clients write."""

BESIDE = ("onprem-gitea-runner@1", "onprem-gitea-runner@2", "onprem-gitea-cache", "onprem-minio-audit")
"""Units of services that no client of theirs connects to."""


def test_nothing_acknowledged_is_lost_when_services_are_killed_under_load(
    site: TestSite, s3: Any, mlflow: Client, gitea: Client
) -> None:
    writers, rows = [objects(s3), metrics(mlflow), files(gitea)], Rows(site)
    # Those that listen for clients, and those beside them that nobody talks to.
    units = [*(unit_of(site, service) for service in PORTS), *BESIDE]
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
    site.run("verify", "infrastructure", "--role", "gitea_runner").must()
    assert site.on("s1", f"systemctl is-active {' '.join(BESIDE)}").split() == ["active"] * len(BESIDE)


DATA = ("/var/lib/postgresql", "/var/lib/onprem-minio", "/var/lib/gitea")
DISK = "/mnt/small"


@contextmanager
def small_disk(site: TestSite) -> Iterator[None]:
    """The services' data on one file system with some room; back on the node's own disk at the end."""
    units = " ".join(unit_of(site, service) for service in PORTS)
    move = f"systemctl stop {units}; mkdir -p {DISK} && mount -t tmpfs -o size=2g,mode=755 small {DISK}; "
    move += "".join(f"cp -a --parents {one} {DISK}; mount --bind {DISK}{one} {one}; " for one in DATA)
    site.on("s1", f"{move} systemctl start {units}")
    try:
        yield
    finally:
        back = "".join(f"umount {one}; rm -rf {one}; cp -a {DISK}{one} {one}; " for one in DATA)
        site.on("s1", f"rm -f {DISK}/filler; systemctl stop {units}; {back} umount {DISK}; systemctl start {units}")


def test_a_full_disk_is_refused_and_named_and_nothing_is_corrupted(
    site: TestSite, s3: Any, mlflow: Client, gitea: Client
) -> None:
    on_disk, rows = [objects(s3), files(gitea)], Rows(site)
    writers = [*on_disk, metrics(mlflow)]
    with small_disk(site):
        rows.start()
        with writing(writers):
            all_at_work(writers)
            site.on("s1", f"cat /dev/zero >{DISK}/filler", check=False)
            all_refused(on_disk)
            # PostgreSQL goes on in the pages that it has, and refuses when it needs more.
            grow = "create table grown as select md5(n::text) from generate_series(1, 1000000) n"
            said = site.on("s1", f"cd /; runuser -u postgres -- psql -qXc '{grow}' postgres 2>&1; true")
            assert "No space left on device" in said
            found = site.json("verify", "infrastructure", "--role", "node", "--node", "s1", code=1)
            assert any(f"{DISK} has 0 %" in one["message"] for one in found["checks"] if one["outcome"] == "failed")
            site.on("s1", f"rm {DISK}/filler")
            # Nobody touches them: they find the room by themselves.
            all_at_work(writers)
        rows.stop()
        for one in writers:
            assert one.acknowledged - comes_back(one.read) == set(), f"{one.name}: acknowledged and lost"
        assert rows.lost() == set()
        site.on("s1", "for one in /var/lib/gitea/repositories/*/*.git; do git -c safe.directory=* -C $one fsck; done")
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
