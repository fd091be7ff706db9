"""This machine as a client of a site's services: by their names, through the gateway, trusting the site's authority."""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from onprem_mlops.site import Secrets, load_site
from onprem_mlops.site.material import authority_file
from onprem_mlops.verify.controller import Controller, Response
from tests.lab.sites import TestSite


@dataclass
class Client:
    """Somebody at a service that is reached at `url`, by a header `Authorization`."""

    site: TestSite
    url: str
    authorization: str = field(repr=False)

    @classmethod
    def with_password(cls, site: TestSite, url: str, name: str, password: str) -> Client:
        """Somebody with a name and a password."""
        return cls(site, url, "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode())

    def ask(self, method: str, path: str, body: object = None) -> Response:
        """One request with JSON in and out. OSError if it cannot be made."""
        headers = {"Authorization": self.authorization, "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        return Controller(load_site(self.site.folder)).request(method, f"{self.url}{path}", headers=headers, body=data)

    def must(self, method: str, path: str, body: object = None) -> Any:
        """The same; AssertionError unless the answer is one of success."""
        answer = self.ask(method, path, body)
        assert answer.status < 300, f"{method} {self.url}{path}: HTTP {answer.status} {answer.text[:300]}"
        return answer.json if answer.body else None


def secret(site: TestSite, role: str, name: str) -> str:
    """The value of a secret of the site."""
    return Secrets.of(load_site(site.folder)).get(role, name).reveal()


def mlflow_as(site: TestSite, name: str, password: str) -> Client:
    """Somebody at MLflow."""
    return Client.with_password(site, f"https://mlflow.{load_site(site.folder).domain}", name, password)


def s3_as(site: TestSite, user: str, key: str) -> Any:
    """Somebody at the object store. It asks once: what is refused is to be noticed."""
    loaded = load_site(site.folder)
    return boto3.client(
        "s3",
        endpoint_url=f"https://s3.{loaded.domain}",
        aws_access_key_id=user,
        aws_secret_access_key=key,
        region_name="us-east-1",
        verify=str(authority_file(loaded)),
        config=Config(s3={"addressing_style": "path"}, connect_timeout=3, read_timeout=10, retries={"max_attempts": 0}),
    )


@dataclass
class Writer:
    """Writes numbers somewhere, one after the other, and remembers those whose writing was acknowledged."""

    name: str
    write: Callable[[int], None]
    """Writes a number; an error of a client means that it was not acknowledged."""
    read: Callable[[], set[int]]
    """All numbers that are there."""
    acknowledged: set[int] = field(default_factory=set)
    refused: int = 0

    def run(self, stop: threading.Event) -> None:
        """Write until told to stop. A number is never written twice: a second try could hide a loss."""
        number = 0
        while not stop.is_set():
            number += 1
            try:
                self.write(number)
            except (OSError, AssertionError, http.client.HTTPException, BotoCoreError, ClientError):
                # The service was killed: what matters is what it said yes to.
                self.refused += 1
                time.sleep(0.2)
            else:
                self.acknowledged.add(number)


@contextmanager
def writing(writers: list[Writer]) -> Iterator[None]:
    """All writers at work at once; at the end each has finished what it began."""
    stop = threading.Event()
    threads = [threading.Thread(target=one.run, args=(stop,), name=one.name) for one in writers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
