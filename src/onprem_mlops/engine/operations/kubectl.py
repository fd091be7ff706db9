"""Objects of a Kubernetes cluster: applied on the server's side, compared with what is there, waited for.

Everything runs on a control plane node, with the credentials that kubeadm leaves there; none travel. Where one small
answer is enough the API is asked with curl: it costs a node a twentieth of what kubectl does.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyinfra.context import host

from onprem_mlops.engine.facts import Probe, Reading
from onprem_mlops.engine.operation import Command, operation
from onprem_mlops.events import Diff

KUBECTL = "/usr/local/bin/kubectl --kubeconfig /etc/kubernetes/admin.conf"
MANAGER = "onprem-mlops"
"""Field manager: what we apply is ours, and what others set stays theirs."""

API = """\
api() { ( umask 077; identity=$(mktemp -p /run) || exit 1; trap 'rm -f "$identity"' EXIT
sed -n 's/^ *client-\\(certificate\\|key\\)-data: //p' /etc/kubernetes/admin.conf |
  while read -r one; do echo "$one" | base64 -d; done >"$identity"
curl --silent --max-time 10 --cacert /etc/kubernetes/pki/ca.crt --cert "$identity" "$@" ); }
"""
"""Shell function: curl as the administrator of /etc/kubernetes/admin.conf, whose key is never an argument."""

LOCAL = "https://127.0.0.1:6443"
_SERVER_SIDE = f"--server-side --force-conflicts --field-manager={MANAGER}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API answered: HTTP status (0: nothing listens) and the object, empty if there was none."""

    status: int
    body: Mapping[str, Any]


class ApiObject(Reading[Answer]):
    """One path of the Kubernetes API, asked on a control plane node of its own API server. An error has no body."""

    def command(self, path: str) -> str:
        return f"{API}api --write-out '\\n%{{http_code}}\\n' {shlex.quote(LOCAL + path)} || true"

    def process(self, output: Iterable[str]) -> Answer:
        *lines, code = [line for line in output if line] or ["0"]
        body = json.loads("\n".join(lines)) if code == "200" else {}
        return Answer(int(code), body)

    @staticmethod
    def default() -> Answer:
        return Answer(0, {})


def api(path: str) -> Answer:
    """Read a path of the Kubernetes API on the control plane node that the current step runs on."""
    answer: Answer = host.get_fact(ApiObject, path=path)
    return answer


@operation
def apply(manifest: str, *, what: str) -> Iterator[Command]:
    """These objects are in the cluster as the manifest says; fields that it does not name stay as they are.

    Args:
        manifest: YAML of one or more objects; travels over standard input.
        what: short name for the diff, such as "namespace monitoring".
    """
    # A here-document, so that the text is an argument of no process.
    text = manifest.removesuffix("\n")
    difference = host.get_fact(Probe, command=f"{_diff('-f -')} <<'END-OF-MANIFEST'\n{text}\nEND-OF-MANIFEST")
    yield from _applied(difference.status, difference.text, "-f -", what, stdin=manifest)


@operation
def apply_folder(folder: str, *, what: str, last: str) -> Iterator[Command]:
    """The objects of a kustomization on the node are in the cluster: an upstream manifest and our declared patches.

    Args:
        folder: the kustomization's folder.
        what: short name for the diff.
        last: API path of one of the objects; without it there is nothing to compare.
    """
    source = f"-k {shlex.quote(folder)}"
    if api(last).status != 200:
        yield from _applied(3, "", source, what, stdin=None)
        return
    difference = host.get_fact(Probe, command=_diff(source))
    yield from _applied(difference.status, difference.text, source, what, stdin=None)


def _diff(source: str) -> str:
    return f"[ -s /etc/kubernetes/admin.conf ] || exit 3; {KUBECTL} diff {_SERVER_SIDE} {source}"


def _applied(status: int, difference: str, source: str, what: str, stdin: str | None) -> Iterator[Command]:
    # 0: all as it should be. 1: something differs. Else it cannot be compared (no cluster yet, or a kind or namespace
    # that this very manifest brings): it is applied, and if it cannot be, that fails and says why.
    if status == 0:
        return
    shown = _readable(difference) if status == 1 else (stdin or what)
    yield Command(
        f"{KUBECTL} apply {_SERVER_SIDE} {source}",
        stdin=stdin,
        diff=Diff(what, None, shown),
        timeout=300,
    )


def _readable(difference: str) -> str:
    """kubectl's diff without its temporary paths."""
    noise = ("diff -u", "--- ", "+++ ")
    return "\n".join(line for line in difference.splitlines() if not line.startswith(noise))


@operation
def absent(*objects: str, namespace: str = "") -> Iterator[Command]:
    """No such objects, given as `kind/name`; unknown kinds count as absent."""
    where = f"-n {shlex.quote(namespace)} " if namespace else ""
    names = " ".join(shlex.quote(one) for one in objects)
    reached = "[ -s /etc/kubernetes/admin.conf ] &&"
    found = host.get_fact(Probe, command=f"{reached} {KUBECTL} get {where}--ignore-not-found -o name {names}")
    if found.text.strip():
        yield Command(f"{KUBECTL} delete {where}--ignore-not-found --wait {names}", timeout=300)


@operation
def folder_absent(folder: str, *, last: str) -> Iterator[Command]:
    """The objects of a kustomization are on their way out. Does not wait: their pods may have no node that ends them.

    Args:
        folder: the kustomization's folder on the node.
        last: API path of one of the objects; without it nothing is there to remove.
    """
    if api(last).status == 200:
        yield Command(f"{KUBECTL} delete --ignore-not-found --wait=false -k {shlex.quote(folder)}", timeout=300)


def reported(node: str) -> str:
    """Shell for `shell.wait`, on the node: every container that the cluster takes for running there does run.

    For up to a minute after a boot the API still tells of the containers from before it, as ready as they were.
    """
    listed = (
        "/usr/local/bin/kubectl --kubeconfig /etc/kubernetes/kubelet.conf get pods --all-namespaces "
        f"--field-selector spec.nodeName={node} -o go-template={shlex.quote(_RUNNING)}"
    )
    booted = "$(systemctl show --property UserspaceTimestampMonotonic --value)"
    up_long = f"[ $(( $(cut -d. -f1 /proc/uptime) - {booted} / 1000000 )) -gt {_STALE_SECONDS} ]"
    # Nothing can be compared with a runtime that does not answer; its own role sees to that.
    all_run = (
        f"running=$(crictl ps --quiet 2>/dev/null) || exit 0; claimed=$({listed}) && for one in $claimed; do "
        'case "$running" in *"${one#containerd://}"*) ;; *) exit 1 ;; esac; done'
    )
    return f"{up_long} || {{ {all_run}; }}"


_STALE_SECONDS = 600
"""Seconds after a boot in which the API may tell of containers from before it. Later, a container that it takes for
running and that is not has just ended, as those of jobs do."""

_RUNNING = (
    "{{range .items}}{{if not .metadata.deletionTimestamp}}{{range .status.containerStatuses}}"
    '{{if .state.running}}{{.containerID}}{{"\\n"}}{{end}}{{end}}{{end}}{{end}}'
)


@operation
def pods_ready(*names: str, node: str, namespace: str, seconds: int = 120) -> Iterator[Command]:
    """These pods of one node are there and ready. The API learns of a static pod up to a minute after it began."""
    pods = api(f"/api/v1/namespaces/{namespace}/pods?fieldSelector=spec.nodeName={node}").body.get("items", ())
    ready = {
        pod["metadata"]["name"]
        for pod in pods
        if any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", ()))
    }
    missing = [name for name in names if name not in ready]
    if missing:
        where = f"-n {shlex.quote(namespace)}"
        wait = f"{KUBECTL} wait pods {where} {' '.join(missing)} --for=condition=Ready --timeout={seconds}s"
        yield Command(
            f"end=$(( $(date +%s) + {seconds} )); until {wait} >/dev/null 2>&1; do [ $(date +%s) -lt $end ] || "
            f"{{ {KUBECTL} get pods {where} -o wide >&2; exit 1; }}; sleep 1; done",
            timeout=2 * seconds + 30,
        )


@operation
def rolled_out(*workloads: str, namespace: str, seconds: int = 180, but: Collection[str] = ()) -> Iterator[Command]:
    """These workloads (`daemonsets/name`, `deployments/name`) run in their newest form, on every node that they should.

    Nodes that the cluster has lost sight of are not waited for: there a daemon set counts without them, and of a
    deployment as much as keeps it available is enough. What hinders is printed if they do not within `seconds`.

    Args:
        workloads: as the cluster names them.
        namespace: that they are in.
        seconds: how long they may take, all together.
        but: names of nodes on which a daemon set's pods need not be up: of its newest form they must be, and as many
            pods as there are other nodes must be up.
    """
    lost = _lost_nodes()
    out = _lost_nodes(but)
    waiting = [one for one in workloads if not _is_rolled_out(one, namespace, lost, out)]
    if waiting:
        names = " ".join(shlex.quote(one) for one in waiting)
        where = f"-n {shlex.quote(namespace)}"
        script = _WAIT.format(kubectl=KUBECTL, where=where, names=names, seconds=seconds, but=" ".join(but))
        yield Command(script, timeout=seconds + 60)


_WAIT = """\
ready='{{range .items[*]}}{{.metadata.name}} {{.status.conditions[?(@.type=="Ready")].status}}{{"\\n"}}{{end}}'
lost() {{ {kubectl} get nodes -o jsonpath="$ready" | awk '$2 == "Unknown" || index(" '"$*"' ", " " $1 " ")' | wc -l; }}
is() {{ {kubectl} get {where} "$1" -o jsonpath="{{.$2}}"; }}
but() {{ [ "$(is "$1" "status.$2")" -ge $(( $(is "$1" status.desiredNumberScheduled) - $3 )) ]; }}
enough() {{ case $1 in
  daemonsets/*) [ "$(is "$1" metadata.generation)" = "$(is "$1" status.observedGeneration)" ] &&
    but "$1" updatedNumberScheduled $(lost) && but "$1" numberAvailable $(lost {but}) ;;
  *) [ $(lost) -gt 0 ] && {kubectl} wait {where} --for=condition=Available --timeout=1s "$1" ;;
esac >/dev/null 2>&1; }}
up() {{ {kubectl} rollout status {where} --timeout=5s "$1" >/dev/null 2>&1 && return
  [ $(lost {but}) -gt 0 ] && enough "$1"; }}
end=$(( $(date +%s) + {seconds} ))
for one in {names}; do
  until up "$one"; do
    [ $(date +%s) -lt $end ] && sleep 1 && continue
    echo "$one is not up after {seconds} s" >&2
    {kubectl} get pods {where} -o wide >&2
    {kubectl} get events {where} --field-selector=type=Warning --sort-by=.lastTimestamp 2>/dev/null | tail -n 12 >&2
    exit 1
  done
done"""
"""Shell: wait for workloads one after the other. Says nothing while it waits: if the controller is gone meanwhile,
writing into the broken pipe would look as if they were not up, and the next run would wait for this one to give up."""


def _lost_nodes(also: Collection[str] = ()) -> int:
    """How many nodes the cluster has not heard of for a while. One that is just not ready yet is not among them."""
    return sum(
        node["metadata"]["name"] in also
        or any(one["type"] == "Ready" and one["status"] == "Unknown" for one in node["status"].get("conditions", ()))
        for node in api("/api/v1/nodes").body.get("items", ())
    )


def _is_rolled_out(workload: str, namespace: str, lost: int, out: int) -> bool:
    answer = api(f"/apis/apps/v1/namespaces/{namespace}/{workload}")
    if answer.status != 200:
        return False
    body = answer.body
    status, spec = body["status"], body["spec"]
    if status.get("observedGeneration") != body["metadata"]["generation"]:
        return False
    if body["kind"] == "DaemonSet":
        wanted = status["desiredNumberScheduled"]
        updated, available = status.get("updatedNumberScheduled", 0), status.get("numberAvailable", 0)
        return bool(wanted) and updated >= wanted - lost and available >= wanted - out
    if lost:
        return any(one["type"] == "Available" and one["status"] == "True" for one in status.get("conditions", ()))
    wanted = spec["replicas"]
    return all(status.get(key) == wanted for key in ("replicas", "updatedReplicas", "availableReplicas"))


@operation
def label_and_taint(node: str, *, labels: Mapping[str, str], taints: tuple[str, ...]) -> Iterator[Command]:
    """A node has these labels and taints, and none that we gave it before and that are no longer asked for.

    Labels and taints of others stay. What is ours is known from the object itself: labels by their field manager,
    taints by an annotation (the list of taints has only one owner).

    Args:
        node: its name in the cluster.
        labels: all that are asked for.
        taints: all that are asked for, as `key=value:Effect` or `key:Effect`.
    """
    found = api(f"/api/v1/nodes/{node}").body
    ours = _our_labels(found)
    name = shlex.quote(node)
    if ours != labels or _annotated(found) != taints:
        # kubeadm does not wait for the kubelet to register its node; applying earlier would make one in its place.
        there = (
            f"i=0; until {KUBECTL} get node {name} >/dev/null 2>&1; do i=$((i+1)); [ $i -lt 120 ] || "
            f"{{ echo 'the kubelet of {node} has not registered it within 60 s' >&2; exit 1; }}; sleep 0.5; done; "
        )
        yield Command(
            ("" if found else there) + f"{KUBECTL} apply {_SERVER_SIDE} -f -",
            stdin=json.dumps(_node_manifest(node, labels, taints)),
            diff=Diff(f"labels of node {node}", _lines(ours), _lines(labels)),
        )
    present = tuple(_taint(one) for one in found.get("spec", {}).get("taints", ()))
    stale = [one for one in _annotated(found) or () if one not in taints]
    changes = [one for one in taints if one not in present]
    changes += [f"{_key(one)}-" for one in stale if one in present]
    if changes:
        yield Command(
            f"{KUBECTL} taint nodes {name} --overwrite " + " ".join(shlex.quote(one) for one in changes),
            diff=Diff(f"taints of node {node}", "\n".join(present), "\n".join(changes)),
        )


@operation
def offered(node: str, resource: str, number: int, *, more: bool, seconds: int = 120) -> Iterator[Command]:
    """A node offers so much of a resource. One that the cluster has lost sight of is not waited for.

    Args:
        node: its name in the cluster.
        resource: such as nvidia.com/gpu.
        number: how much of it.
        more: whether more is right, too.
        seconds: how long it may take, after what offers it has started.
    """
    status = api(f"/api/v1/nodes/{node}").body.get("status", {})
    ready = any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions", ()))
    found = int(status.get("allocatable", {}).get(resource, 0))
    if not ready or found == number or (more and found > number):
        return
    test = "-ge" if more else "="
    there = f"{KUBECTL} get node {shlex.quote(node)} -o go-template='{{{{index .status.allocatable \"{resource}\"}}}}'"
    yield Command(
        f'end=$(( $(date +%s) + {seconds} )); until n=$({there}) && [ "$n" {test} {number} ]; do '
        f"[ $(date +%s) -lt $end ] && sleep 1 && continue; "
        f'echo "{node} offers $n of {resource} and not {number} after {seconds} s" >&2; exit 1; done',
        timeout=seconds + 60,
    )


_TAINTS = f"{MANAGER}/taints"


def _annotated(found: Mapping[str, Any]) -> tuple[str, ...] | None:
    noted = found.get("metadata", {}).get("annotations", {}).get(_TAINTS)
    return None if noted is None else tuple(noted.split())


def _our_labels(found: Mapping[str, Any]) -> dict[str, str]:
    metadata = found.get("metadata", {})
    ours: set[str] = set()
    for entry in metadata.get("managedFields", ()):
        if entry.get("manager") == MANAGER:
            fields = entry["fieldsV1"].get("f:metadata", {}).get("f:labels", {})
            ours |= {key.removeprefix("f:") for key in fields if key != "."}
    return {key: value for key, value in metadata.get("labels", {}).items() if key in ours}


def _node_manifest(node: str, labels: Mapping[str, str], taints: tuple[str, ...]) -> dict[str, Any]:
    annotations = {_TAINTS: " ".join(taints)}
    metadata = {"name": node, "labels": dict(labels), "annotations": annotations}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata}


def _taint(one: Mapping[str, str]) -> str:
    value = f"={one['value']}" if one.get("value") else ""
    return f"{one['key']}{value}:{one['effect']}"


def _key(taint: str) -> str:
    """`key=value:Effect` as kubectl wants it for removal: `key:Effect`."""
    key, _, effect = taint.rpartition(":")
    return f"{key.split('=')[0]}:{effect}"


def _lines(labels: Mapping[str, str]) -> str:
    return "".join(f"{key}={value}\n" for key, value in sorted(labels.items()))


def namespace(name: str, *, level: str = "restricted", labels: Mapping[str, str] | None = None) -> str:
    """A manifest of a namespace for the platform: nothing in or out but DNS, until a policy allows more.

    Args:
        name: the namespace.
        level: Pod Security level that is enforced there: "restricted", "baseline" or "privileged".
        labels: more labels.
    """
    enforced = {f"pod-security.kubernetes.io/{mode}": level for mode in ("enforce", "audit", "warn")}
    objects = [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {**enforced, **(labels or {})}},
        },
        *default_deny(name),
    ]
    return "---\n".join(json.dumps(one, indent=1) + "\n" for one in objects)


def default_deny(name: str) -> list[dict[str, Any]]:
    """The two policies that every namespace of a role starts with: deny all, allow questions to the cluster's DNS."""
    dns = {
        "to": [
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
                "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
            }
        ],
        "ports": [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")],
    }
    return [
        _policy(name, "default-deny", {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}),
        _policy(name, "allow-dns", {"podSelector": {}, "policyTypes": ["Egress"], "egress": [dns]}),
    ]


def _policy(namespace: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
