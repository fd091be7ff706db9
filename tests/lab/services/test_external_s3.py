"""An object store that the site does not lay down: the checks of any S3, made by a second site file."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from onprem_mlops.site import load_site
from onprem_mlops.site.material import authority_file
from tests.lab.sites import TestSite

pytestmark = pytest.mark.lab


@pytest.fixture
def customer(site: TestSite, tmp_path: Path) -> TestSite:
    """The same site as one whose S3 is a company's own: what it knows is an address and an authority."""
    loaded = load_site(site.folder)
    shutil.copytree(site.folder, tmp_path / "site")
    file = tmp_path / "site" / "site.yaml"
    yaml = YAML()
    written = yaml.load(file)
    written["roles"] = ["node", "mirror", "object_store"]
    written["settings"] = {
        "node": written["settings"]["node"],
        "object_store": {
            "engine": "external",
            "url": f"https://{loaded.full_name(loaded.node('s1'))}:9000",
            "authority": authority_file(loaded).read_text(),
        },
    }
    yaml.dump(written, file)
    return TestSite(site.name, tmp_path / "site")


def test_a_companys_own_s3_passes_the_same_checks(customer: TestSite) -> None:
    found = customer.json("verify", "infrastructure", "--role", "object_store")
    outcomes = Counter(one["outcome"] for one in found["checks"])
    assert outcomes["passed"] >= 60
    # What looks at nodes and drives is not there to be looked at.
    assert set(outcomes) == {"passed", "does_not_apply"}
