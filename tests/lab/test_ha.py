"""Three control planes behind one address: one is lost, and the API goes on."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from onprem_mlops import lab
from onprem_mlops.site import load_site
from tests.lab.sites import TestSite, made

pytestmark = pytest.mark.lab

FAILOVER_SECONDS = 60


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestSite]:
    with made("lab-ha", "t-ha", tmp_path_factory.mktemp("site")) as site:
        site.run("deploy", "infrastructure").must()
        yield site


def holder(site: TestSite) -> str:
    """The control plane that has the API's address."""
    address = load_site(site.folder).networks.api_address
    names = ("cp1", "cp2", "cp3")
    return next(name for name in names if f"{address}/" in site.on(name, "ip -4 -o address show"))


def test_the_site_is_verified_and_a_second_deploy_changes_nothing(site: TestSite) -> None:
    site.run("verify", "infrastructure").must()
    assert site.json("deploy", "infrastructure")["changed"] == 0


def test_the_kubeconfig_names_the_shared_address(site: TestSite) -> None:
    path = Path(site.run("kubeconfig").must().output.strip())
    server = re.search(r"server: https://([^:]+):", path.read_text())
    assert server
    assert server[1] == str(load_site(site.folder).networks.api_address)


LOSE_DISK = """\
systemctl stop kubelet; crictl pods -q | xargs -r crictl rmp -f >/dev/null 2>&1
mount | sed -n 's|.* on \\(/var/lib/kubelet/.*\\) type .*|\\1|p' | xargs -r umount
rm -rf /etc/kubernetes; find /var/lib/etcd /var/lib/kubelet -mindepth 1 -delete
"""


def test_a_first_control_plane_that_lost_its_disk_joins_again(site: TestSite) -> None:
    cluster = site.kubectl("get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}")
    site.on("cp1", LOSE_DISK)
    refused = site.run("deploy", "infrastructure", "--node", "cp1").must(1)
    assert "cp1 is in no cluster, and cp2, cp3, which may have one, did not say" in " ".join(refused.output.split())
    site.run("deploy", "infrastructure").must()
    site.run("verify", "infrastructure").must()
    assert site.kubectl("get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}") == cluster


def test_the_loss_of_the_control_plane_that_holds_the_address(site: TestSite) -> None:
    lost = holder(site)
    lab.power_cut(site.spec, lost)
    try:
        end = time.monotonic() + FAILOVER_SECONDS
        while site.run("kubectl", "--", "get", "nodes", "--request-timeout=3s").code != 0:
            assert time.monotonic() < end, f"the API did not answer again within {FAILOVER_SECONDS} s"
        site.kubectl("create", "configmap", "written-while-one-is-lost", "--from-literal=a=b")
        result = site.json("deploy", "infrastructure", code=1)
        assert list(result["unreachable"]) == [lost]
        assert result["failed"] == []
    finally:
        lab.start(site.spec, lost)
    site.run("deploy", "infrastructure").must()
    site.run("verify", "infrastructure").must()
    assert site.kubectl("get", "configmap", "written-while-one-is-lost", "-o", "jsonpath={.data.a}").strip() == "b"
