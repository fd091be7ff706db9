"""The pods' network as pods find it. One pod a node and one stranger are started for these checks and removed after."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from onprem_mlops.artifacts import Store
from onprem_mlops.verify.suite import Cluster, DoesNotApply, NotChecked, Ran, Site, namespace, until
from roles.network.settings import Settings

START_SECONDS = 45
"""How long the pods may take, image pull included."""

SPREAD_SECONDS = 10
"""How long a NetworkPolicy or a new Service may take to reach every node."""

PORT = 8080
ANSWER_BYTES = 1 << 17
"""More than fits in one packet, so that a wrong MTU shows."""

SERVER = rf"""
use strict; use IO::Socket::INET; $SIG{{PIPE}} = "IGNORE";
my $s = IO::Socket::INET->new(LocalPort => {PORT}, Listen => 64, ReuseAddr => 1) or die $!;
my $body = "x" x {ANSWER_BYTES};
while (my $c = $s->accept) {{
  while (<$c>) {{ last if /^\r?\n$/ }}
  print $c "HTTP/1.0 200 OK\r\nContent-Length: {ANSWER_BYTES}\r\n\r\n$body"; close $c;
}}
"""

STRANGER = "stranger"


@dataclass(frozen=True)
class Pods:
    """The pods of these checks, and the Service before the first of them."""

    cluster: Cluster
    namespace: str
    addresses: Mapping[str, str]
    """Of each pod, by name; the pod on a node is called ``on-<node>``."""
    service: str

    @property
    def on_nodes(self) -> list[str]:
        """The pods that are friends, one a node."""
        return [name for name in self.addresses if name != STRANGER]

    def run(self, pod: str, *command: str) -> Ran:
        """Run a command in one of the pods."""
        return self.cluster.exec(self.namespace, pod, *command)

    def fetches(self, pod: str, host: str, port: int = PORT) -> bool:
        """Whether a pod gets the whole answer of a server."""
        limits = ("--connect-timeout", "1.2", "--max-time", "3")  # a lost first packet is sent again after a second
        url = f"http://{host}:{port}/"
        said = self.run(pod, "curl", "-s", "-o", "/dev/null", "-w", "%{size_download}", *limits, url)
        return said.status == 0 and said.stdout == str(ANSWER_BYTES)


def _pod(name: str, node: str, role: str) -> dict[str, Any]:
    container = {
        "name": "netcheck",
        "image": Store().image("image-netcheck"),
        "command": ["perl", "-e", SERVER],
        "ports": [{"containerPort": PORT}],
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
    }
    spec = {
        "nodeName": node,
        "containers": [container],
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
        "tolerations": [{"operator": "Exists"}],
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}},
    }
    metadata = {"name": name, "labels": {"verify": role, "pod": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@pytest.fixture(scope="module")
def started(cluster: Cluster, site: Site) -> Iterator[Pods | str]:
    """The pods, running; or why they do not."""
    members = [node.name for node in site.in_group("worker", "control_plane")]
    with namespace(cluster, "network") as name:
        path = f"/api/v1/namespaces/{name}"
        accounts = f"{path}/serviceaccounts/default"
        assert until(lambda: cluster.request("GET", accounts).status == 200, 20), (
            f"namespace {name} stays without account"
        )
        for node in members:
            cluster.create(f"{path}/pods", _pod(f"on-{node}", node, "friend"))
        cluster.create(f"{path}/pods", _pod(STRANGER, members[-1], "stranger"))
        spec = {"selector": {"pod": f"on-{members[0]}"}, "ports": [{"port": 80, "targetPort": PORT}]}
        service = cluster.create(f"{path}/services", {"metadata": {"name": "server"}, "spec": spec})
        addresses = _addresses(cluster, path, len(members) + 1)
        yield addresses if isinstance(addresses, str) else Pods(cluster, name, addresses, service["spec"]["clusterIP"])


@pytest.fixture
def pods(started: Pods | str) -> Pods:
    """The pods. One check says that they do not start; the others cannot be made then."""
    if isinstance(started, str):
        raise NotChecked(f"the pods of this check did not start: {started}")
    return started


def _addresses(cluster: Cluster, path: str, wanted: int) -> dict[str, str] | str:
    def ready() -> dict[str, str]:
        return {
            one["metadata"]["name"]: one["status"]["podIP"]
            for one in cluster.items(f"{path}/pods")
            if any(now["type"] == "Ready" and now["status"] == "True" for now in one["status"].get("conditions", ()))
        }

    if not until(lambda: len(ready()) == wanted, START_SECONDS, every=0.3):
        events = [one["message"] for one in cluster.items(f"{path}/events") if one["type"] == "Warning"]
        found = ready()
        missing = [name for one in cluster.items(f"{path}/pods") if (name := one["metadata"]["name"]) not in found]
        return f"not ready after {START_SECONDS} s: {', '.join(missing)}; {'; '.join(events[-4:])}"
    return ready()


def test_addresses(started: Pods | str, site: Site) -> None:
    """A pod starts on every node and gets an address of the pods' network."""
    assert isinstance(started, Pods), started
    foreign = {name: ip for name, ip in started.addresses.items() if IPv4Address(ip) not in site.networks.pods}
    assert not foreign, f"addresses outside {site.networks.pods}: {foreign}"


@pytest.mark.limit(120)
def test_pod_to_pod(pods: Pods) -> None:
    """Pods on different nodes reach each other, with answers larger than a packet."""
    names = pods.on_nodes
    # A ring: each node sends and receives once, however many there are.
    pairs = [(name, names[(at + 1) % len(names)]) for at, name in enumerate(names)]
    failed = [f"{one} → {other}" for one, other in pairs if not pods.fetches(one, pods.addresses[other])]
    assert not failed, f"no answer: {', '.join(failed)}"


@pytest.mark.limit(120)
def test_service(pods: Pods) -> None:
    """A Service is reached from every node, by its address and by its name."""
    pairs = [(name, host) for name in pods.on_nodes for host in (pods.service, "server")]

    def reached(pair: tuple[str, str]) -> bool:
        return until(lambda: pods.fetches(*pair, 80), SPREAD_SECONDS)

    failed = [f"{name} → {host}" for name, host in pairs if not reached((name, host))]
    assert not failed, f"no answer: {', '.join(failed)}"


def _resolved(pods: Pods, pod: str, names: list[str]) -> dict[str, str]:
    """The addresses of each name, sorted and joined by commas; `-` for none."""
    ask = 'timeout 5 getent ahostsv4 "$name" | cut -d" " -f1 | LC_ALL=C sort -u | paste -sd,'
    script = f'for name in "$@"; do found=$({ask}); echo "${{found:--}}"; done'
    said = pods.run(pod, "sh", "-c", script, "sh", *names)
    return dict(zip(names, said.stdout.split(), strict=True))


def test_cluster_names(pods: Pods, site: Site, cluster: Cluster) -> None:
    """Pods on every node resolve the names of Services."""
    api = cluster.get("/api/v1/namespaces/default/services/kubernetes")["spec"]["clusterIP"]
    wanted = {
        "server": pods.service,
        f"server.{pods.namespace}.svc.cluster.local": pods.service,
        "kubernetes.default.svc": api,
    }
    for pod in pods.on_nodes:
        found = _resolved(pods, pod, list(wanted))
        wrong = [
            f"{name} is {found[name]}, not {address}" for name, address in wanted.items() if found[name] != address
        ]
        assert not wrong, f"{pod}: {'; '.join(wrong)}"


def test_site_names(pods: Pods, site: Site) -> None:
    """Pods resolve the names of the site: nodes, mirror, API."""
    pod = pods.on_nodes[-1]
    found = _resolved(pods, pod, list(site.names))
    wanted = {name: ",".join(sorted(map(str, addresses))) for name, addresses in site.names.items()}
    wrong = [f"{name} is {found[name]}, not {right}" for name, right in wanted.items() if found[name] != right]
    assert not wrong, f"{pod}: {'; '.join(wrong)}"


def test_foreign_names(pods: Pods, settings: Settings) -> None:
    """Pods ask nobody outside the site for names."""
    if settings.upstream_resolvers:
        raise DoesNotApply("the site file names resolvers for other names")
    found = _resolved(pods, pods.on_nodes[0], ["kubernetes.default.svc", "example.com."])
    # The control: where nothing is answered at all, silence about a foreign name proves nothing.
    assert found["kubernetes.default.svc"] != "-", f"{pods.on_nodes[0]}: no name is resolved at all"
    assert found["example.com."] == "-", f"{pods.on_nodes[0]}: example.com is {found['example.com.']}"


def test_api_from_pods(pods: Pods) -> None:
    """Pods on every node reach the Kubernetes API."""
    url = "https://kubernetes.default.svc/readyz"
    for pod in pods.on_nodes:
        said = pods.run(pod, "curl", "-sk", "--max-time", "4", "-w", "%{http_code}", "-o", "/dev/null", url)
        assert said.stdout == "200", f"{pod}: {url} answers {said.stdout or said.stderr or said.status}"


def test_nodes_are_shut_for_pods(pods: Pods, site: Site) -> None:
    """A pod reaches SSH of no node, not even of its own."""
    attempt = f'timeout 1 bash -c "</dev/tcp/$to/{site.ssh.port}" 2>/dev/null && echo $to'
    script = f'for to in "$@"; do {{ {attempt}; }} & done; wait'
    said = pods.run(STRANGER, "bash", "-c", script, "bash", *(str(node.address) for node in site.nodes))
    assert said.status == 0 and not said.stdout.split(), f"{STRANGER} reaches SSH of {', '.join(said.stdout.split())}"


@pytest.mark.limit(120)
def test_policies(pods: Pods) -> None:
    """A NetworkPolicy denies what it should deny and allows what it should allow, across nodes."""
    server, friend = pods.on_nodes[0], pods.on_nodes[-1]
    host = pods.addresses[server]
    path = f"/apis/networking.k8s.io/v1/namespaces/{pods.namespace}/networkpolicies"
    assert pods.fetches(STRANGER, host), f"{STRANGER} does not reach {server} before there is any policy"
    pods.cluster.create(path, _policy("deny", {"podSelector": {}, "policyTypes": ["Ingress"]}))
    try:
        denied = until(lambda: not pods.fetches(friend, host) and not pods.fetches(STRANGER, host), SPREAD_SECONDS)
        assert denied, f"{SPREAD_SECONDS} s after a policy that denies everything, {server} still answers"
        rule = {"from": [{"podSelector": {"matchLabels": {"verify": "friend"}}}], "ports": [{"port": PORT}]}
        spec = {"podSelector": {"matchLabels": {"pod": server}}, "policyTypes": ["Ingress"], "ingress": [rule]}
        pods.cluster.create(path, _policy("allow", spec))
        assert until(lambda: pods.fetches(friend, host), SPREAD_SECONDS), (
            f"{server} does not answer {friend}, whom a policy allows"
        )
        assert not pods.fetches(STRANGER, host), f"{server} answers {STRANGER}, whom no policy allows"
    finally:
        for name in ("allow", "deny"):
            pods.cluster.delete(f"{path}/{name}")


def _policy(name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": dict(spec),
    }


def test_default_deny(cluster: Cluster) -> None:
    """Every namespace of the platform denies what no policy allows."""
    exempt = {"kube-system", "kube-public", "kube-node-lease"}
    policies = cluster.items("/apis/networking.k8s.io/v1/networkpolicies")
    closed = {one["metadata"]["namespace"] for one in policies if _denies_all(one["spec"])}
    opened = sorted(set(cluster.namespaces()) - exempt - closed)
    assert not opened, f"namespaces where everybody may talk to everybody: {', '.join(opened)}"


def _denies_all(spec: Mapping[str, Any]) -> bool:
    nothing = not spec.get("ingress") and not spec.get("egress")
    return nothing and not spec.get("podSelector") and {"Ingress", "Egress"} <= set(spec.get("policyTypes", ()))


def test_networks_do_not_overlap(site: Site, cluster: Cluster) -> None:
    """Addresses that the cluster really gives out lie in the networks of the site file."""
    services = [one["spec"].get("clusterIP") for one in cluster.items("/api/v1/services")]
    foreign = [ip for ip in services if ip not in (None, "None") and IPv4Address(ip) not in site.networks.services]
    assert not foreign, f"Services outside {site.networks.services}: {', '.join(foreign)}"
    pools = cluster.items("/apis/crd.projectcalico.org/v1/ippools")
    found = {IPv4Network(one["spec"]["cidr"]) for one in pools}
    assert found == {site.networks.pods}, (
        f"pods get addresses of {sorted(map(str, found))}, not of {site.networks.pods}"
    )
    wrong = [json.dumps(one["spec"]) for one in pools if one["spec"].get("vxlanMode") != "Always"]
    assert not wrong, f"pools without VXLAN: {'; '.join(wrong)}"
