"""Clients that write to every service, and what they find again."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from tests.lab.clients import Client, Writer
from tests.lab.sites import TestSite

PORTS = {"postgresql": 5432, "object_store": 9000, "gitea": 3000, "mlflow": 5000, "gateway": 443}
"""Where each service listens on s1."""


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


def new_repository(gitea: Client) -> str:
    """Where the API has a private repository that nobody else uses."""
    new = {"name": uuid.uuid4().hex[:8], "auto_init": True, "private": True, "default_branch": "main"}
    return f"/api/v1/repos/{gitea.must('POST', '/api/v1/user/repos', new)['full_name']}"


def files(gitea: Client) -> Writer:
    """Commits, one a file."""
    at = new_repository(gitea)

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


def all_refused(writers: list[Writer], seconds: float = 3) -> None:
    """Wait until not one writer has been told yes for so long."""

    def refused() -> None:
        before = {one.name: len(one.acknowledged) for one in writers}
        time.sleep(seconds)
        served = [one.name for one in writers if len(one.acknowledged) > before[one.name]]
        assert not served, f"still written: {served}"

    comes_back(refused)
