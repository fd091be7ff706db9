"""A site that grows by a node touches that node; a role that is removed leaves its nodes as they were."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.sites import TestSite, made

pytestmark = pytest.mark.lab

ROLES = ("network", "kubernetes", "containerd", "firewall", "mirror", "node")
"""In the order in which they are taken off: what needs others first."""

STATE = r"""
find /etc /opt /usr/local /srv /root -xdev -not -path '/etc/ssl/certs/*' -printf '%p %y %m %u %g %l\n' | sort
dpkg-query -W -f '${Package} ${db:Status-Abbrev}\n'
apt-mark showhold
nft list ruleset
systemctl list-unit-files --state=enabled --no-legend --plain | awk '{print $1}'
cat /etc/hosts /etc/hostname
cut -d: -f1 /etc/passwd /etc/group
ip -br link | awk '{print $1}'
find /var/lib /var/log /var/cache -xdev -maxdepth 1 -type d | sort
sysctl net.ipv4.ip_forward net.ipv4.conf.all.accept_redirects net.ipv4.conf.default.rp_filter net.core.somaxconn
apt-mark showmanual
"""
"""What a role could leave behind: files with owner and mode, packages and marks on them, rules, units, names, users and
groups, interfaces, folders of data and logs, kernel parameters."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestSite]:
    with made("lab", "t-grow", tmp_path_factory.mktemp("site"), booted=False) as site:
        file = site.folder / "site.yaml"
        mirror = "settings:\n  mirror: {debian: [bookworm, trixie]}\n"
        file.write_text(file.read_text().replace("settings:\n", mirror, 1))
        site.run("lab", "up", "--nodes-only").must()
        yield site


@pytest.fixture(scope="module")
def before(site: TestSite) -> dict[str, list[str]]:
    """The nodes before anything is laid down."""
    return {node.name: site.on(node.name, STATE).splitlines() for node in site.spec.nodes}


@pytest.fixture
def deployed(site: TestSite, before: dict[str, list[str]]) -> TestSite:
    site.run("deploy", "infrastructure").must()
    return site


def test_a_new_node_is_laid_down_and_others_only_hear_of_it(deployed: TestSite) -> None:
    site = deployed
    file = site.folder / "site.yaml"
    address = site.spec.node("w1").address + 1
    new = (
        f"  - {{name: w2, address: {address}, host_key: generated, groups: [worker], release: 13,\n"
        "     labels: {example.com/rack: r2}}\n"
    )
    file.write_text(file.read_text().replace("  - name: s1", new + "  - name: s1"))
    site.run("lab", "up", "--nodes-only").must()
    result = site.json("deploy", "infrastructure")
    others = {(step["step"], step["node"]) for step in result["steps"] if step["changed"] and step["node"] != "w2"}
    names_and_rules = {(step, node) for step in ("node.base", "firewall.rules") for node in ("cp1", "w1", "s1", "b1")}
    steps = ("kubernetes.prepare", "kubernetes.admission", "kubernetes.approve", "kubernetes.mark", "network.names")
    cluster = {(step, "cp1") for step in (*steps, "network.ready")}
    assert others <= names_and_rules | cluster, "old nodes only hear of the new one"
    assert site.on("w2", ". /etc/os-release; echo $VERSION_ID") == "13"
    site.run("verify", "infrastructure", "--node", "w2").must()
    assert site.kubectl("get", "nodes", "-l", "example.com/rack=r2", "-o", "name").strip() == "node/w2"


def test_removed_roles_leave_nodes_as_they_were(deployed: TestSite, before: dict[str, list[str]]) -> None:
    site = deployed
    refused = site.run("remove", "--role", "network", "--yes-destroy", "another").must(2)
    assert "nothing was touched" in refused.output
    for role in ROLES:
        site.run("remove", "--role", role, "--data", "--yes-destroy", site.name).must()
    for node, state in before.items():
        after = site.on(node, STATE).splitlines()
        left = sorted(set(after) - set(state))
        gone = sorted(set(state) - set(after))
        assert (left, gone) == ([], []), node
