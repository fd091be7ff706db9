"""The schema of MLflow's database: what is older is saved and brought up to date, what is newer is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.clients import Client
from tests.lab.services.at_work import comes_back, metrics
from tests.lab.sites import TestSite

pytestmark = pytest.mark.lab

UNIT = "onprem-mlflow"
BACKUPS = "/var/lib/onprem-mlflow/backups"
UNKNOWN = "ffffffffffff"
REVISION = "select version_num from alembic_version"

BEFORE_THE_NEWEST = """
import os, sqlalchemy
from alembic import command
from alembic.script import ScriptDirectory
from mlflow.store.db import utils
from mlflow.store.tracking.dbmodels.initial_models import Base
uri = os.environ["MLFLOW_BACKEND_STORE_URI"]
configuration = utils._get_alembic_config(uri)
scripts = ScriptDirectory.from_config(configuration)
older = scripts.get_revision(scripts.get_current_head()).down_revision
engine = sqlalchemy.create_engine(uri)
Base.metadata.create_all(engine)
with engine.begin() as connection:
    configuration.attributes["connection"] = connection
    command.upgrade(configuration, older)
print(older)
"""
"""MLflow's own way to its schema, ended one step before the newest; prints the revision."""


def sql(site: TestSite, statement: str, database: str = "mlflow") -> str:
    return site.on("s1", f'cd /; runuser -u postgres -- psql -qXAtc "{statement}" {database}')


def answers(mlflow: Client) -> None:
    comes_back(lambda: mlflow.must("GET", "/api/2.0/mlflow/experiments/search?max_results=1"))


def test_a_schema_of_a_newer_version_is_refused_and_left_alone(site: TestSite, mlflow: Client) -> None:
    kept = metrics(mlflow)
    kept.write(1)
    revision = sql(site, REVISION)
    backups = site.on("s1", f"ls {BACKUPS} 2>/dev/null || true")
    sql(site, f"update alembic_version set version_num = '{UNKNOWN}'")
    site.on("s1", f"systemctl restart {UNIT}", check=False)
    try:
        failed = site.run("deploy", "infrastructure", "--role", "mlflow").must(1)
        said = " ".join(failed.output.replace("│", " ").split())
        assert f"database mlflow has schema {UNKNOWN}, which MLflow" in said and "a newer version has used it" in said
        # It does not try again and again, and neither saved nor changed anything.
        assert site.on("s1", f"systemctl is-failed {UNIT}") == "failed"
        assert sql(site, REVISION) == UNKNOWN
        assert site.on("s1", f"ls {BACKUPS} 2>/dev/null || true") == backups
    finally:
        sql(site, f"update alembic_version set version_num = '{revision}'")
        site.run("deploy", "infrastructure", "--role", "mlflow").must()
    answers(mlflow)
    assert kept.read() == {1}


@contextmanager
def another_database(site: TestSite) -> Iterator[None]:
    """MLflow is stopped, and its database an empty one; at the end it runs with its own again."""
    site.on("s1", f"systemctl stop {UNIT}")
    sql(site, "alter database mlflow rename to mlflow_aside", "postgres")
    sql(site, "create database mlflow owner mlflow template template0", "postgres")
    try:
        yield
    finally:
        site.on("s1", f"systemctl stop {UNIT}")
        sql(site, "drop database mlflow with (force)", "postgres")
        sql(site, "alter database mlflow_aside rename to mlflow", "postgres")
        site.on("s1", f"systemctl start {UNIT}")


def test_an_older_schema_is_saved_and_brought_up_to_date(site: TestSite, mlflow: Client) -> None:
    newest = sql(site, REVISION)
    run = (
        "systemd-run -q --wait --pipe --collect -p User=onprem-mlflow "
        "-p EnvironmentFile=/etc/onprem-mlflow/environment "
        "$(sed -n 's/^ExecStart=\\([^ ]*\\) .*/\\1/p' /etc/systemd/system/onprem-mlflow.service) -W ignore -"
    )
    with another_database(site):
        older = site.on("s1", f"cat <<'END' | {run}\n{BEFORE_THE_NEWEST}\nEND").splitlines()[-1]
        assert sql(site, REVISION) == older != newest
        site.on("s1", f"systemctl start {UNIT}")
        answers(mlflow)
        assert sql(site, REVISION) == newest
        (backup,) = site.on("s1", f"ls {BACKUPS}/mlflow-{older}-*.dump").split()
        # What was saved is the database as it was before.
        saved = site.on("s1", f"pg_restore --data-only --table alembic_version -f - {backup}")
        assert older in saved and newest not in saved
        site.on("s1", f"rm {backup}")
    answers(mlflow)
