"""The whole lab with all services, for all tests in here: making it is what takes long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config

from onprem_mlops.site import load_site
from onprem_mlops.site.material import authority_file
from onprem_mlops.verify.resolving import resolving
from tests.lab.clients import Client, secret
from tests.lab.sites import TestSite, made


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestSite]:
    """The whole lab as `inventories/lab` has it, by the README's first command."""
    with made("lab", "t-services", tmp_path_factory.mktemp("site"), roles=(), booted=False) as site:
        site.run("lab", "up").must()
        yield site


@pytest.fixture(scope="package")
def names(site: TestSite) -> Iterator[None]:
    with resolving(load_site(site.folder)):
        yield


@pytest.fixture(scope="package")
def gitea(site: TestSite) -> Client:
    """Gitea, as the account that deploys act with: people's passwords are theirs."""
    header = site.on("s1", "cat /etc/gitea/token")
    return Client(site, f"https://git.{load_site(site.folder).domain}", header.partition(": ")[2])


@pytest.fixture(scope="package")
def mlflow(site: TestSite) -> Client:
    """MLflow's administrator."""
    url = f"https://mlflow.{load_site(site.folder).domain}"
    return Client.with_password(site, url, "admin", secret(site, "mlflow", "admin_password"))


@pytest.fixture(scope="package")
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
