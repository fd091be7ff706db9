"""Proof that the checks can fail: a lab is broken for real in many ways, and exactly the right checks must say so.

All breakages of a test are made at once, and the failures must be the union of what each is expected to cause: no more
and no less. Then what a deploy restores is restored by a deploy, the rest by hand, and everything must hold again.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from onprem_mlops import lab
from onprem_mlops.site import load_site
from onprem_mlops.site.secrets import Secrets
from tests.lab.sites import TestSite

pytestmark = pytest.mark.lab

KUBECTL = "kubectl"
"""A breakage in the cluster instead of on a node."""

Failure = tuple[str, str, str]
"""Role, node (empty: the site), sentence of the check."""

OPEN = (
    "firewall",
    "",
    "Every port that answers on a node, from any other machine, is one that a role declared for that machine",
)
DENY = ("network", "", "Every namespace of the platform denies what no policy allows")
ETCD = (
    "crictl exec $(crictl ps --name '^etcd$' -q) etcdctl --endpoints=https://127.0.0.1:2379 "
    "--cacert=/etc/kubernetes/pki/etcd/ca.crt --cert=/etc/kubernetes/pki/etcd/server.crt "
    "--key=/etc/kubernetes/pki/etcd/server.key"
)
LISTENER = (
    "use IO::Socket::INET; $s = IO::Socket::INET->new(LocalPort => 6666, Listen => 9) or die; "
    "while ($c = $s->accept) { close $c }"
)


@dataclass(frozen=True)
class Breakage:
    """One thing that is broken, and the checks that must notice."""

    where: str
    how: str
    failures: tuple[Failure, ...]
    mend: str = ""
    """What a deploy does not restore, because it never laid it down."""


def _node(node: str, sentence: str) -> Failure:
    return ("node", node, sentence)


BREAKAGES = (
    Breakage(
        "w1", "systemctl stop chrony", (_node("w1", "The time service runs, also after a reboot, and is synchronised"),)
    ),
    Breakage("b1", "hostname somebody-else", (_node("b1", "The host name is the name in the site file"),)),
    Breakage(
        "b1",
        "sed -i '/ cp1$/d' /etc/hosts",
        (_node("b1", "Every name of the site resolves to the address in the site file"),),
    ),
    Breakage(
        "w1",
        "sysctl -qw net.ipv4.tcp_syncookies=0",
        (_node("w1", "The kernel runs with every parameter of the site file"),),
    ),
    Breakage(
        "s1",
        "sed -i /tcp_syncookies/d /etc/sysctl.d/*onprem*",
        (_node("s1", "Every kernel parameter would be the same after a reboot"),),
    ),
    Breakage(
        "b1",
        "rm /etc/modules-load.d/onprem-mlops.conf",
        (_node("b1", "The kernel can do what its modules are for, now and after a reboot"),),
    ),
    Breakage(
        "b1", "rm /etc/systemd/journald.conf.d/onprem-mlops.conf", (_node("b1", "The journal cannot fill the disk"),)
    ),
    Breakage("w1", "apt-mark unhold runc", (_node("w1", "Packages that only a deploy may upgrade are held"),)),
    Breakage(
        "w1",
        "sed -i '/runc/d' /etc/apt/apt.conf.d/*onprem-mlops-upgrades",
        (_node("w1", "Automatic updates leave alone what only a deploy may upgrade"),),
    ),
    Breakage(
        "b1",
        "echo 'deb http://debian.example.com/debian bookworm main' >/etc/apt/sources.list.d/foreign.list",
        (
            _node("b1", "Packages come from the site's own mirror and from nowhere else"),
            _node("b1", "apt reads the mirror's package lists over TLS and finds their signature good"),
        ),
        "rm /etc/apt/sources.list.d/foreign.list",
    ),
    Breakage(
        "b1",
        "rm /usr/local/share/ca-certificates/onprem-mlops.crt; update-ca-certificates --fresh >/dev/null 2>&1",
        (
            _node("b1", "Programs on the node trust what the site's authority signed, and refuse what it did not"),
            _node("b1", "apt reads the mirror's package lists over TLS and finds their signature good"),
        ),
    ),
    Breakage(
        "b1",
        "systemd-run --quiet --unit=verify-broken false; sleep 0.3",
        (_node("b1", "No unit of systemd has failed"),),
        "systemctl reset-failed verify-broken",
    ),
    Breakage(
        "s1",
        "printf 'PasswordAuthentication yes\\nAuthenticationMethods any\\n' >/etc/ssh/sshd_config.d/00-a.conf; "
        "systemctl reload ssh",
        (
            _node("s1", "The SSH server's effective configuration takes keys only, and nobody as root"),
            _node("s1", "A login with a password is refused, whatever the password"),
        ),
        "rm /etc/ssh/sshd_config.d/00-a.conf; systemctl reload ssh",
    ),
    Breakage(
        "cp1",
        "touch /etc/kubernetes/scheduler.conf",
        (("kubernetes", "cp1", "Every process of the control plane began after its certificates were written"),),
    ),
    Breakage(
        "cp1",
        "chmod 644 /etc/sudoers.d/*onprem*",
        (_node("cp1", "The rules of sudo are sound, and only root can read or change them"),),
    ),
    Breakage(
        "b1",
        "useradd -o -u 0 -M second-root",
        (_node("b1", "No account has an empty password, and root is the only one with its rights"),),
        "sed -i /^second-root:/d /etc/passwd /etc/shadow /etc/group /etc/gshadow",
    ),
    Breakage(
        "w1",
        "nft insert rule inet onprem input tcp dport 6666 accept; "
        f"setsid perl -e '{LISTENER}' >/dev/null 2>&1 </dev/null & sleep 0.3",
        (OPEN, ("firewall", "w1", "The rules that are loaded now are the ones that a reboot loads")),
        "pkill -f 'LocalPor[t]'",
    ),
    Breakage(
        "b1",
        "nft 'add chain inet onprem input { policy accept; }'",
        (
            OPEN,
            ("firewall", "b1", "Packets that no rule lets in are dropped"),
            ("firewall", "b1", "The rules that are loaded now are the ones that a reboot loads"),
            (
                "firewall",
                "b1",
                "A service that somebody starts without declaring its port cannot be reached from any other machine",
            ),
            (
                "firewall",
                "",
                "Ports that are not declared do not even say that they are closed: their packets are dropped",
            ),
            ("network", "", "A pod reaches SSH of no node, not even of its own"),
        ),
    ),
    Breakage(
        "s1",
        "f=$(readlink -f $(find -L /srv/mirror/current/files -type f -name crictl)); chmod u+w $f; "
        "printf x | dd of=$f bs=1 seek=4096 conv=notrunc 2>/dev/null",
        (("mirror", "", "Every file on the mirror's disk is the one in the artifact store"),),
    ),
    Breakage(
        "s1",
        "chmod 644 /etc/onprem-mirror/key.pem",
        (
            ("mirror", "", "The mirror's private key can be read by the web server's account only"),
            (
                "mirror",
                "",
                "The mirror's services run as accounts of their own, which can write nothing that is served",
            ),
        ),
    ),
    Breakage(
        "w1",
        "printf '\\n[host.\"https://quay.io\"]\\n' >>/etc/containerd/certs.d/quay.io/hosts.toml",
        (("containerd", "w1", "Every registry leads to the site's mirror, and none has a second address"),),
    ),
    Breakage(
        "w1",
        "systemctl disable --quiet containerd",
        (("containerd", "w1", "containerd runs, also after a reboot, and is ready for containers and their network"),),
    ),
    Breakage(
        "cp1",
        "chmod 644 /etc/kubernetes/pki/apiserver.key",
        (("kubernetes", "cp1", "Keys and kubeconfigs can be read by root only"),),
        "chmod 600 /etc/kubernetes/pki/apiserver.key",
    ),
    Breakage(
        "w1",
        "sed -i 's/^readOnlyPort: 0/readOnlyPort: 10255/; s/anonymous: {enabled: false}/anonymous: {enabled: true}/' "
        "/etc/kubernetes/kubelet.conf.d/10-onprem-mlops.conf; systemctl restart kubelet; sleep 3",
        (
            ("kubernetes", "w1", "The kubelet's read-only port is closed, even for the node itself"),
            (
                "kubernetes",
                "w1",
                "The kubelet answers nobody without a certificate, and shows one that the cluster signed for this node",
            ),
            (
                "kubernetes",
                "",
                "Every kubelet runs with the settings of the site file, and lets nobody in without a name",
            ),
        ),
    ),
    Breakage(
        "cp1",
        f"{ETCD} put /registry/secrets/default/verify-plain "
        """'{"kind":"Secret","apiVersion":"v1","metadata":{"name":"verify-plain","namespace":"default"}}'""",
        (("kubernetes", "", "No secret stands readable in the database, not even an old one"),),
        f"{ETCD} del /registry/secrets/default/verify-plain",
    ),
    Breakage(
        KUBECTL,
        "label node w1 node-role.kubernetes.io/worker-",
        (("kubernetes", "", "Every node has the labels of the site file"),),
    ),
    Breakage(
        KUBECTL,
        "taint node w1 verify=there:PreferNoSchedule",
        (("kubernetes", "", "Every node has the taints of the site file and of its roles, and no others"),),
        "taint node w1 verify-",
    ),
    Breakage(
        KUBECTL,
        "create clusterrolebinding verify-all --clusterrole=view --group=system:authenticated",
        (("kubernetes", "", "No right to change or see objects is given to everybody or to people without a name"),),
        "delete clusterrolebinding verify-all",
    ),
    Breakage(KUBECTL, "delete networkpolicy default-deny -n default", (DENY,)),
)

LOOSE = {
    "apiVersion": "v1",
    "kind": "Namespace",
    "metadata": {"name": "loose", "labels": {"pod-security.kubernetes.io/enforce": "privileged"}},
}
ALLOW_ALL = {
    "apiVersion": "crd.projectcalico.org/v1",
    "kind": "GlobalNetworkPolicy",
    "metadata": {"name": "verify-allow-all"},
    "spec": {"order": 1, "selector": "all()", "types": ["Ingress"], "ingress": [{"action": "Allow"}]},
}


@pytest.fixture(autouse=True)
def deployed(killed_at: list[str]) -> None:
    """The cluster is laid down before anything is broken."""


def failures(site: TestSite, *words: str, code: int = 1) -> set[Failure]:
    """What does not hold now."""
    found = site.json("verify", "infrastructure", *words, code=code)
    return {(one["role"], one["node"], one["name"]) for one in found["checks"] if one["outcome"] == "failed"}


def _do(site: TestSite, where: str, command: str) -> None:
    if not command:
        return
    if where == KUBECTL:
        site.kubectl(*command.split())
    else:
        site.on(where, command)


def _apply(site: TestSite, manifest: Mapping[str, object]) -> None:
    path = site.folder / "manifest.json"
    path.write_text(json.dumps(manifest))
    site.kubectl("apply", "-f", str(path))


def test_each_breakage_is_caught_by_the_right_checks_and_by_no_other(site: TestSite) -> None:
    for one in BREAKAGES:
        _do(site, one.where, one.how)
    expected = {failure for one in BREAKAGES for failure in one.failures}
    found = failures(site)
    assert found - expected == set(), f"failed without a cause: {found - expected}"
    assert expected - found == set(), f"broken and not noticed: {expected - found}"
    for one in BREAKAGES:
        _do(site, one.where, one.mend)
    site.run("deploy", "infrastructure").must()
    assert failures(site, code=0) == set()


def test_policies_and_secrets_are_caught(site: TestSite) -> None:
    _apply(site, LOOSE)
    _apply(site, ALLOW_ALL)
    kubeconfig = load_site(site.folder).state / "kubeconfig"
    kubeconfig.chmod(0o644)
    key = Secrets.of(load_site(site.folder)).get("kubernetes", "encryption_key").reveal()
    # In base64 as well: what is searched for is not only the plain text.
    leak = base64.b64encode(key.encode()).decode()
    # In two halves: sudo writes commands to the journal, where the whole would be found as well.
    site.on("b1", f"printf %s%s {leak[:20]} {leak[20:]} >/etc/leak.conf; chmod 644 /etc/leak.conf")
    found = failures(site)
    site.on("b1", "rm /etc/leak.conf")
    kubeconfig.chmod(0o600)
    site.kubectl("delete", "namespace", "loose")
    site.kubectl("delete", "globalnetworkpolicies.crd.projectcalico.org", "verify-allow-all")
    assert found == {
        DENY,
        ("kubernetes", "", "A privileged pod is refused in every namespace but the system's own"),
        ("kubernetes", "", "The administrator's kubeconfig on this machine can be read by its owner only"),
        ("network", "", "A NetworkPolicy denies what it should deny and allows what it should allow, across nodes"),
        (
            "infrastructure",
            "",
            "No secret of the site stands in a file that everybody may read, on a command line or in the journal",
        ),
    }
    assert failures(site, code=0) == set()


def test_dead_parts_of_the_cluster_are_caught(site: TestSite) -> None:
    site.on("cp1", "mv /etc/kubernetes/manifests/kube-scheduler.yaml /root/; systemctl stop haproxy")
    deadline = time.monotonic() + 60
    while site.on("cp1", "pgrep -x kube-scheduler || true") and time.monotonic() < deadline:
        time.sleep(1)
    found = failures(site, "--role", "kubernetes")
    site.on("cp1", "mv /root/kube-scheduler.yaml /etc/kubernetes/manifests/; systemctl start haproxy")
    assert ("kubernetes", "", "The Kubernetes API answers the administrator at the site's endpoint") in found
    assert ("kubernetes", "cp1", "The control plane's processes run with the flags that keep it safe") in found


def test_a_node_that_is_off_is_named_and_not_taken_for_right(site: TestSite) -> None:
    lab.power_cut(site.spec, "b1")
    try:
        result = site.folder / "result.json"
        site.run("verify", "infrastructure", "--role", "node", "--json", str(result)).must(2)
        found = json.loads(result.read_text())
    finally:
        lab.start(site.spec, "b1", lambda message, node: None)
    of_node = [one for one in found["checks"] if one["node"] == "b1"]
    assert of_node and {one["outcome"] for one in of_node} == {"not_checked"}
    assert all(f"b1 ({site.spec.node('b1').address})" in one["message"] for one in of_node)
    others = {one["outcome"] for one in found["checks"] if one["node"] not in ("b1", "")}
    assert others == {"passed"}
    assert found["failed"] == 0 and found["not_checked"] == len(of_node) + 1  # and whether all clocks agree


def test_wrong_names_are_refused_and_nothing_is_touched(site: TestSite, tmp_path: Path) -> None:
    refused = site.run("verify", "infrastructure", "--node", "w11").must(2)
    assert 'did you mean "w1"?' in refused.output
    assert 'did you mean "network"?' in site.run("verify", "infrastructure", "--role", "netwrk").must(2).output
    assert site.run("verify", "infrastucture").must(2).output.count("infrastructure") >= 1
