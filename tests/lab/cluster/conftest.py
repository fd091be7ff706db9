"""One cluster for all tests in here: making it is what takes long."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.cluster import under_fire
from tests.lab.sites import TestSite, made


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestSite]:
    """The lab's nodes, booted."""
    with made("lab", "t-deploy", tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture(scope="package")
def killed_at(site: TestSite) -> list[str]:
    """The cluster is laid down, by a deploy that was killed at these 25 or more points."""
    return under_fire.laid_down(site)
