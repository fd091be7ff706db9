"""The whole lab with all services, for all tests in here: making it is what takes long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from onprem_mlops.site import load_site
from onprem_mlops.verify.resolving import resolving
from tests.lab.clients import Client, mlflow_as, s3_as, secret
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


# Not kept for longer than a test: secrets are rotated in some.


@pytest.fixture
def gitea(site: TestSite, names: None) -> Client:
    """Gitea, as the account that deploys act with: people's passwords are theirs."""
    header = site.on("s1", "cat /etc/gitea/token")
    return Client(site, f"https://git.{load_site(site.folder).domain}", header.partition(": ")[2])


@pytest.fixture
def mlflow(site: TestSite, names: None) -> Client:
    """MLflow's administrator."""
    return mlflow_as(site, "admin", secret(site, "mlflow", "admin_password"))


@pytest.fixture
def s3(site: TestSite, names: None) -> Any:
    """The object store, as the user of the checks: it may do anything with buckets `verify-…`."""
    return s3_as(site, "verify", secret(site, "object_store", "user_verify"))
