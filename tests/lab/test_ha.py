"""One control plane becomes three behind one address; one of them is lost, and the API goes on."""

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
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestSite, str]]:
    """The lab with its first control plane only and no address of the API, laid down; and the cluster's identity."""
    with made("lab-ha", "t-ha", tmp_path_factory.mktemp("site"), without=("b1",), booted=False) as site:
        file = site.folder / "site.yaml"
        whole = file.read_text()
        text = re.sub(r"^  api_address: .*\n|^  - name: cp[23]\n(    .*\n)+", "", whole, flags=re.MULTILINE)
        file.write_text(text)
        site.run("lab", "up", "--nodes-only").must()
        site.run("deploy", "infrastructure").must()
        identity = identity_of(site)
        file.write_text(whole)
        yield site, identity


@pytest.fixture(scope="module")
def site(alone: tuple[TestSite, str]) -> TestSite:
    """The same lab with all that its site file has."""
    site, _ = alone
    site.run("lab", "up", "--nodes-only").must()
    site.run("deploy", "infrastructure").must()
    return site


def identity_of(site: TestSite) -> str:
    """What is never the same in two clusters."""
    return site.kubectl("get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}")


def verified(site: TestSite) -> None:
    """The control planes are as they should be."""
    for role in ("kubernetes", "network"):
        site.run("verify", "infrastructure", "--role", role).must()


def holder(site: TestSite) -> str:
    """The control plane that has the API's address."""
    address = load_site(site.folder).networks.api_address
    names = ("cp1", "cp2", "cp3")
    return next(name for name in names if f"{address}/" in site.on(name, "ip -4 -o address show"))


def test_one_control_plane_becomes_three(alone: tuple[TestSite, str], site: TestSite) -> None:
    verified(site)
    assert identity_of(site) == alone[1]
    planes = site.kubectl("get", "nodes", "-l", "node-role.kubernetes.io/control-plane", "-o", "name").split()
    assert planes == ["node/cp1", "node/cp2", "node/cp3"]
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
    cluster = identity_of(site)
    site.on("cp1", LOSE_DISK)
    refused = site.run("deploy", "infrastructure", "--node", "cp1").must(1)
    assert "cp1 is in no cluster, and cp2, cp3, which may have one, did not say" in " ".join(refused.output.split())
    site.run("deploy", "infrastructure").must()
    verified(site)
    assert identity_of(site) == cluster


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
    verified(site)
    assert site.kubectl("get", "configmap", "written-while-one-is-lost", "-o", "jsonpath={.data.a}").strip() == "b"
