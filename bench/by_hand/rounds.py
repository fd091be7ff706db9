"""Runs on the node of the services, with MLflow's Python: the same work at ours and at those by hand, taking turns.

A round is many small pieces of work, each done at one and then at the other: what slows the node meets both.

Reads from standard input, as JSON: rounds, and of each contender the addresses and logins. Writes, as JSON, the rates
of each kind of work: a list of pairs (ours, by hand), one a round.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import requests
from botocore.config import Config

AUTHORITY = "/etc/ssl/certs/ca-certificates.crt"
OBJECT = b"x" * (1 << 20)
AT_ONCE = 4
BUCKET = EXPERIMENT = REPOSITORY = "verify-bench"


class Minio:
    """Objects of 1 MiB, four at a time."""

    def __init__(self, login: Mapping[str, str]) -> None:
        self._client = boto3.client(
            "s3",
            endpoint_url=login["url"],
            aws_access_key_id=login["user"],
            aws_secret_access_key=login["secret"],
            region_name="us-east-1",
            verify=AUTHORITY,
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
        )
        self._threads = ThreadPoolExecutor(AT_ONCE)
        self._client.create_bucket(Bucket=BUCKET)

    def _all(self, what: Callable[[str], object]) -> float:
        begun = time.monotonic()
        list(self._threads.map(what, (f"object-{at}" for at in range(AT_ONCE))))
        return (time.monotonic() - begun) / AT_ONCE

    def put(self) -> float:
        return self._all(lambda key: self._client.put_object(Bucket=BUCKET, Key=key, Body=OBJECT))

    def get(self) -> float:
        return self._all(lambda key: self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def close(self) -> None:
        for at in range(AT_ONCE):
            self._client.delete_object(Bucket=BUCKET, Key=f"object-{at}")
        self._client.delete_bucket(Bucket=BUCKET)
        self._threads.shutdown()


class Gitea:
    """Pushes over HTTPS of one small commit each."""

    def __init__(self, login: Mapping[str, str]) -> None:
        self._api = f"{login['url']}/api/v1"
        self._session = requests.Session()
        self._session.verify = AUTHORITY
        self._session.headers["Authorization"] = f"token {login['secret']}"
        self._owner = self._must("GET", "/user")["login"]
        self._must("POST", "/user/repos", {"name": REPOSITORY})
        self._folder = tempfile.TemporaryDirectory()
        basic = base64.b64encode(f"{self._owner}:{login['secret']}".encode()).decode()
        self._environment = os.environ | {
            "HOME": self._folder.name,
            "GIT_CONFIG_COUNT": "2",
            "GIT_CONFIG_KEY_0": "http.extraHeader",
            "GIT_CONFIG_VALUE_0": f"Authorization: Basic {basic}",
            "GIT_CONFIG_KEY_1": "http.sslCAInfo",
            "GIT_CONFIG_VALUE_1": AUTHORITY,
            **{
                f"GIT_{who}_{what}": "bench@invalid.test"
                for who in ("AUTHOR", "COMMITTER")
                for what in ("NAME", "EMAIL")
            },
        }
        self._git("init", "-q", "-b", "main")
        self._git("remote", "add", "origin", f"{login['url']}/{self._owner}/{REPOSITORY}.git")

    def _must(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        answer = self._session.request(method, self._api + path, json=body, timeout=60)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def _git(self, *words: str) -> None:
        subprocess.run(["git", *words], cwd=self._folder.name, env=self._environment, check=True, capture_output=True)

    def push(self) -> float:
        Path(self._folder.name, "file").write_text(str(time.time_ns()))
        self._git("add", "file")
        self._git("commit", "-q", "-m", "bench")
        begun = time.monotonic()
        self._git("push", "-q", "origin", "main")
        return time.monotonic() - begun

    def close(self) -> None:
        self._must("DELETE", f"/repos/{self._owner}/{REPOSITORY}")
        self._folder.cleanup()


class Mlflow:
    """Runs with five parameters and twenty metrics, one after the other."""

    def __init__(self, login: Mapping[str, str]) -> None:
        self._api = f"{login['url']}/api/2.0/mlflow"
        self._session = requests.Session()
        self._session.verify = AUTHORITY
        self._session.auth = (login["user"], login["secret"])
        # A deleted experiment keeps its name until it is collected.
        name = f"{EXPERIMENT}-{time.time_ns()}"
        self._experiment = self._must("experiments/create", {"name": name})["experiment_id"]

    def _must(self, path: str, body: Mapping[str, Any]) -> Any:
        answer = self._session.post(f"{self._api}/{path}", json=body, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def run(self) -> float:
        begun = time.monotonic()
        now = int(time.time() * 1000)
        run = self._must("runs/create", {"experiment_id": self._experiment, "start_time": now})
        run_id = run["run"]["info"]["run_id"]
        metrics = [{"key": f"m{at}", "value": at, "timestamp": now, "step": at} for at in range(20)]
        params = [{"key": f"p{at}", "value": str(at)} for at in range(5)]
        self._must("runs/log-batch", {"run_id": run_id, "metrics": metrics, "params": params})
        self._must("runs/update", {"run_id": run_id, "status": "FINISHED", "end_time": now})
        return time.monotonic() - begun

    def close(self) -> None:
        self._must("experiments/delete", {"experiment_id": self._experiment})


WORK: dict[str, tuple[type[Minio | Gitea | Mlflow], str, int]] = {
    "MinIO, puts of 1 MiB a second": (Minio, "put", 12),
    "MinIO, gets of 1 MiB a second": (Minio, "get", 12),
    "Gitea, commits a second by git push": (Gitea, "push", 5),
    "MLflow, logged runs a second": (Mlflow, "run", 10),
}
"""Kind of work: at whom, what, and how many pieces a round has. Each gives its seconds."""


def in_turns(contenders: Sequence[object], what: str, pieces: int) -> tuple[float, float]:
    """One round's rates of both; who goes first changes from piece to piece."""
    seconds = [0.0, 0.0]
    for at in range(pieces):
        for one in (0, 1) if at % 2 else (1, 0):
            seconds[one] += getattr(contenders[one], what)()
    return pieces / seconds[0], pieces / seconds[1]


def measured(
    kind: type[Minio | Gitea | Mlflow], logins: Sequence[Mapping[str, str]], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """The rates of one service's work."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    contenders: list[Minio | Gitea | Mlflow] = []
    try:
        # One by one: what the first has made is removed if the second cannot be reached.
        for login in logins:
            contenders.append(kind(login))  # noqa: PERF401
        for name, (of, what, pieces) in WORK.items():
            if of is kind:
                in_turns(contenders, what, 2)  # warms up
                pairs[name] = [in_turns(contenders, what, pieces) for _ in range(rounds)]
    finally:
        for one in contenders:
            one.close()
    return pairs


def main() -> None:
    given = json.load(sys.stdin)
    found: dict[str, list[tuple[float, float]]] = {}
    for kind in (Minio, Gitea, Mlflow):
        logins = [contender[kind.__name__.lower()] for contender in (given["ours"], given["by_hand"])]
        found |= measured(kind, logins, given["rounds"])
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
