"""Lays down Kubernetes: nodes are prepared, one control plane is made, the others and the workers join it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from typing import Any

from onprem_mlops.atomic import write_atomically
from onprem_mlops.engine.facts import probe
from onprem_mlops.engine.operations import apt, containers, files, kubeadm, kubectl, rules, shell, systemd
from onprem_mlops.engine.operations.kubeadm import Admission
from onprem_mlops.errors import MlopsError
from onprem_mlops.roles import Context, KnownLater, removal, step
from onprem_mlops.site import Hidden

from .settings import Settings

ON = ("control_plane", "worker")
CONTROL_PLANE = "control_plane"

CONFIG = "/etc/kubernetes/kubeadm.yaml"
POLICIES = "/etc/kubernetes/policies"
KUBELET = "/etc/kubernetes/kubelet.conf.d"
UNIT = "/etc/systemd/system/kubelet.service"
APPROVER = "/usr/local/sbin/approve-kubelet-certificates"
APPROVER_UNIT = "/etc/systemd/system/approve-kubelet-certificates"
HAPROXY = "/etc/haproxy/haproxy.cfg"
KEEPALIVED = "/etc/keepalived/keepalived.conf"
BINARIES = ("kubeadm", "kubectl", "kubelet")
PACKAGES = ("conntrack", "ethtool", "iptables", "socat")
"""What kubeadm's preflight and `kubectl port-forward` need."""

CIPHERS = (
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
)
"""Ciphers with forward secrecy and authentication only (CIS 1.2.28, 4.2.12)."""

PLANE_PODS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
SERVING = "/var/lib/kubelet/pki/kubelet-server-current.pem"

_one_at_a_time = threading.Lock()
"""Control planes change one after the other: etcd takes one learner at a time, and the API stays up."""


@step(on=ON)
def prepare(ctx: Context[Settings]) -> None:
    """Everything that a node has before there is a cluster."""
    apt.packages("what kubeadm's preflight asks for, and the API endpoint", *PACKAGES, *_endpoint_packages(ctx))
    if not kubeadm.joined():
        planes = PLANE_PODS if _is_plane(ctx) else ()
        containers.images("images begin to come", *(ctx.image(f"image-{name}") for name in (*planes, "kube-proxy")))
    for name in BINARIES:
        authority = ctx.settings_of("node").authority_path
        files.download(name, f"/usr/local/bin/{name}", ctx.file("kubernetes", name), authority=authority)
    digest = _policies(ctx) if _is_plane(ctx) else ""
    files.content("kubeadm configuration", CONFIG, _kubeadm_config(ctx, digest), mode="600")
    driver = ctx.settings_of("containerd").cgroup_driver
    kubelet = ctx.render("kubelet.yaml.j2", cgroup_driver=driver, ciphers=CIPHERS)
    files.content("kubelet configuration", f"{KUBELET}/10-onprem-mlops.conf", kubelet)
    files.directory("folder of static pods, which the kubelet looks into", "/etc/kubernetes/manifests")
    files.content("kubelet service", UNIT, ctx.render("kubelet.service.j2", folder=KUBELET))
    # Before there is a cluster its condition keeps it down; after a power cut in the middle of an init it goes on.
    systemd.service("kubelet starts at boot", "kubelet.service")
    if _is_plane(ctx):
        _endpoint(ctx)


def _is_plane(ctx: Context[Settings]) -> bool:
    return CONTROL_PLANE in ctx.node.groups


def _endpoint_packages(ctx: Context[Settings]) -> tuple[str, ...]:
    if not _is_plane(ctx):
        return ()
    return ("haproxy", "keepalived") if len(ctx.nodes(CONTROL_PLANE)) > 1 else ("haproxy",)


def _kubeadm_config(ctx: Context[Settings], digest: str) -> str:
    return ctx.render(
        "kubeadm.yaml.j2",
        version=ctx.artifacts.version("kubernetes"),
        etcd_tag=_tag(ctx, "image-etcd"),
        coredns_tag=_tag(ctx, "image-coredns"),
        certificate_names=ctx.settings.certificate_names(ctx.site),
        policies=POLICIES,
        policies_digest=digest,
        ciphers=CIPHERS,
        planes=len(ctx.nodes(CONTROL_PLANE)),
    )


def _tag(ctx: Context[Settings], artifact: str) -> str:
    return ctx.image(artifact).rpartition(":")[2]


def _policies(ctx: Context[Settings]) -> str:
    """Write what the API server reads; return a digest of it. The key's digest tells nobody the key."""
    key = ctx.secret("encryption_key")
    texts = {
        name: ctx.render(f"{name}.j2", policies=POLICIES)
        for name in ("admission.yaml", "authentication.yaml", "audit.yaml")
    }
    files.directory("folder of the API server's policies", POLICIES, mode="700")
    for name, text in texts.items():
        files.content(f"API server: {name}", f"{POLICIES}/{name}", text, mode="600")
    encryption = ctx.render("encryption.yaml.j2", key=key.reveal())
    files.content("API server: encryption.yaml", f"{POLICIES}/encryption.yaml", Hidden(encryption), mode="600")
    everything = "".join(texts.values()) + encryption
    return hashlib.sha256(everything.encode()).hexdigest()[:16]


def _endpoint(ctx: Context[Settings]) -> None:
    """haproxy in front of all API servers, the address that moves, and the approval of serving certificates."""
    planes = ctx.nodes(CONTROL_PLANE)
    several = len(planes) > 1
    apt.held("the API endpoint changes in a deploy, not at night", *_endpoint_packages(ctx))
    files.content(
        "API endpoint: haproxy", HAPROXY, ctx.render("haproxy.cfg.j2", planes=planes), check="haproxy -c -q -f {}"
    )
    systemd.service("API endpoint", "haproxy.service", configuration=(HAPROXY,))
    if several:
        interface = probe(f"ip -o -4 address show to {ctx.node.address}").text.split()
        priority = 100 - planes.index(ctx.node)
        text = ctx.render(
            "keepalived.conf.j2",
            planes=planes,
            priority=priority,
            interface=interface[1] if interface else "unknown",
        )
        files.content("the address of the API moves", KEEPALIVED, text)
        systemd.service("address of the API", "keepalived.service", configuration=(KEEPALIVED,))
    members = [node for node in ctx.site.nodes if set(ON) & set(node.groups)]
    listed = "".join(f"{node.name} {node.address}\n" for node in members)
    files.content("nodes whose serving certificates are approved", f"{POLICIES}/nodes", listed)
    script = ctx.render("approve-kubelet-certificates.j2", policies=POLICIES)
    files.content("approval of serving certificates", APPROVER, script, mode="755")
    for kind in ("service", "timer"):
        text = ctx.render(f"approve-kubelet-certificates.{kind}.j2")
        files.content(f"approval of serving certificates: {kind}", f"{APPROVER_UNIT}.{kind}", text)
    systemd.service("approval of renewals", "approve-kubelet-certificates.timer")


@step(on=ON, after=("prepare",))
def state(ctx: Context[Settings]) -> str:
    """What the node is in the cluster: "complete", "partial", "silent" (it cannot be told now) or "nothing"."""
    if _is_plane(ctx):
        return probe(kubeadm.is_control_plane(ctx.node.name, _own_endpoint(ctx))).text.strip() or "nothing"
    return "complete" if kubeadm.joined() else "nothing"


def _own_endpoint(ctx: Context[Settings]) -> str:
    """This control plane's own haproxy, which leads to an API server that is healthy."""
    return f"https://127.0.0.1:{ctx.settings.endpoint_port}"


def _leader(ctx: Context[Settings], state: Mapping[str, str]) -> str:
    """The control plane that acts for the cluster: the first that is one already, else the first of the site file."""
    planes = [node.name for node in ctx.nodes(CONTROL_PLANE)]
    found = (name for wanted in ("complete", "silent") for name in planes if state.get(name) == wanted)
    return next(found, planes[0])


@step(on=CONTROL_PLANE)
def init(ctx: Context[Settings], state: dict[str, str]) -> None:
    """The first control plane, complete."""
    if ctx.node.name != _leader(ctx, state):
        return
    if state[ctx.node.name] == "nothing":
        _refuse_second_cluster(ctx, state)
    kubeadm.init("first control plane", CONFIG)


def _refuse_second_cluster(ctx: Context[Settings], state: Mapping[str, str]) -> None:
    """Raise MlopsError unless it is certain that the site has no cluster yet: a second one would take its address."""
    unknown = [node.name for node in ctx.nodes(CONTROL_PLANE) if node.name not in state]
    members = [name for name, one in state.items() if one == "complete"]
    if unknown:
        raise MlopsError(
            f"{ctx.node.name} is in no cluster, and {', '.join(unknown)}, which may have one, did not say",
            "Deploy once all control planes can be reached, without --node. A control plane that is gone for good has "
            "to leave site.yaml first.",
        )
    if members:
        raise MlopsError(
            f"no control plane has a cluster, but {', '.join(members)} belongs to one",
            "Bring the cluster's database back, or, if the cluster is lost, take each of them out of it first: "
            f"./mlops remove --role kubernetes --node {members[0]}",
        )


@step(on=CONTROL_PLANE, after=("init",))
def admission(ctx: Context[Settings], state: dict[str, str]) -> Admission | None:
    """What nodes that are not in the cluster yet need; None if none is missing."""
    leader = _leader(ctx, state)
    missing = [name for name, one in state.items() if one in ("nothing", "partial") and name != leader]
    if ctx.node.name != leader or not missing:
        return None
    planes = [node.name for node in ctx.nodes(CONTROL_PLANE) if node.name in missing]
    empty = [name for name in missing if state[name] == "nothing"]
    if lost := [name for name in empty if name in planes]:
        kubeadm.etcd_without("control planes that came back empty are no members of etcd", *lost)
    if empty:
        # kubeadm lets nobody in by a name that the cluster takes for a living node's.
        kubectl.absent("nodes that came back empty are forgotten", *(f"node/{name}" for name in empty))
    token = kubeadm.token("bootstrap token").stdout.strip()
    authority = probe("base64 -w0 /etc/kubernetes/pki/ca.crt").text
    keys = kubeadm.shared_keys() if planes else Hidden("")
    discovery = ctx.render(
        "discovery.conf.j2", endpoint=ctx.settings.endpoint(ctx.site), authority=authority, token=token
    )
    return Admission(Hidden(discovery), keys)


def _admitted(ctx: Context[Settings], state: Mapping[str, str], admission: Mapping[str, Any]) -> Admission:
    leader = _leader(ctx, state)
    given: Admission | None = admission.get(leader)
    if given is None:
        raise MlopsError(
            f"{ctx.node.name} is not in the cluster, and {leader}, which could let it in, did not",
            "Run the deploy again without --node, or with the control planes.",
        )
    return given


@step(on=CONTROL_PLANE)
def join_control_plane(ctx: Context[Settings], state: dict[str, str], admission: dict[str, Admission | None]) -> None:
    """Further control planes, one after the other."""
    if ctx.node.name == _leader(ctx, state) or state.get(ctx.node.name) in ("complete", "silent"):
        return
    admitted = _admitted(ctx, state, admission)
    with _one_at_a_time:
        kubeadm.join_control_plane(
            "further control plane", CONFIG, admitted, node=ctx.node.name, server=_own_endpoint(ctx)
        )


@step(on="worker")
def join(ctx: Context[Settings], state: dict[str, str], admission: dict[str, Admission | None]) -> None:
    """Workers, side by side."""
    if _is_plane(ctx) or state.get(ctx.node.name) == "complete":
        return
    kubeadm.join("worker joins", CONFIG, _admitted(ctx, state, admission))


@step(on=ON, after=("join_control_plane", "join"))
def settled(ctx: Context[Settings], state: dict[str, str]) -> bool:
    """The node runs with the configuration on disk, and the cluster knows what runs there.

    Returns whether its kubelet has a serving certificate.
    """
    if ctx.planning and state.get(ctx.node.name) in ("nothing", "partial"):
        raise KnownLater("kubernetes.join")
    if _is_plane(ctx):
        with _one_at_a_time:
            kubeadm.api_certificate("names of the API server", CONFIG, ctx.settings.certificate_names(ctx.site))
            kubeadm.certificates("certificates of the control plane")
            kubeadm.renewed_manifests("control plane as configured", CONFIG)
    configuration = (UNIT, f"{KUBELET}/10-onprem-mlops.conf", "/usr/local/bin/kubelet")
    systemd.service("kubelet runs", "kubelet.service", configuration=configuration)
    shell.wait(
        "the cluster knows what runs here since the last boot",
        kubectl.reported(ctx.node.name),
        seconds=120,
        otherwise="systemctl is-active kubelet containerd; crictl ps -a",
    )
    return bool(probe(f"[ -e {SERVING} ]").ok)


@step(on=CONTROL_PLANE)
def approve(ctx: Context[Settings], state: dict[str, str], settled: dict[str, bool]) -> None:
    """Serving certificates of kubelets that have none yet."""
    waiting = sorted(name for name, serving in settled.items() if not serving)
    if ctx.node.name == _leader(ctx, state) and waiting:
        shell.run("serving certificates", f"{APPROVER} 60 {' '.join(waiting)}", unless="false")


@step(on=CONTROL_PLANE, after=("join_control_plane", "join"))
def mark(ctx: Context[Settings], state: dict[str, str]) -> None:
    """Labels and taints of the site file, and no others of ours."""
    if ctx.node.name != _leader(ctx, state):
        return
    for node in ctx.site.nodes:
        # A node that this run does not lay down may not be in the cluster; naming it there would make it up.
        if node.name in state:
            labels = dict(node.labels)
            if "worker" in node.groups:
                labels["node-role.kubernetes.io/worker"] = ""
            kubectl.label_and_taint(
                f"labels and taints of {node.name}",
                node.name,
                labels=labels,
                taints=ctx.site.taints_of(node),
            )


@step(on=CONTROL_PLANE, after=("settled",))
def ready(ctx: Context[Settings], state: dict[str, str]) -> None:
    """The API knows the pods of the control plane and says that they are ready."""
    name = ctx.node.name
    if ctx.planning and state.get(name) in ("nothing", "partial"):
        raise KnownLater("kubernetes.join")
    pods = [f"{one}-{name}" for one in PLANE_PODS]
    kubectl.pods_ready("pods of the control plane are ready", *pods, node=name, namespace="kube-system")


@step(on=ON, after=("settled",))
def services(ctx: Context[Settings], state: dict[str, str]) -> None:
    """Services are reached from the node: its kube-proxy is up."""
    if ctx.planning and state.get(ctx.node.name) in ("nothing", "partial"):
        raise KnownLater("kubernetes.join")
    shell.wait(
        "kube-proxy on this node",
        "curl -fsS -m 2 -o /dev/null http://localhost:10256/healthz",
        seconds=120,
        otherwise="crictl ps -a --name kube-proxy; systemctl is-active kubelet containerd",
    )


@step(on=CONTROL_PLANE, after=("init",))
def kubeconfig(ctx: Context[Settings], state: dict[str, str]) -> None:
    """The administrator's kubeconfig on the controller, readable by its owner only."""
    if ctx.node.name != _leader(ctx, state):
        return
    path = ctx.state / "kubeconfig"
    private = path.is_file() and path.stat().st_mode & 0o777 == 0o600
    address = f"{ctx.site.api_address}:{ctx.settings.endpoint_port}"
    done = kubeadm.kubeconfig(
        "administrator's kubeconfig",
        str(path),
        path.read_text() if private else None,
        address,
        ctx.settings.endpoint_name(ctx.site),
    )
    if done.changed and not ctx.planning:
        write_atomically(path, (done.stdout.rstrip("\n") + "\n").encode())


@removal(on=ON)
def remove(ctx: Context[Settings]) -> None:
    """The node leaves the cluster. The last control plane's database is data: it stays unless that was agreed to."""
    saved = "/var/lib/etcd.onprem-mlops-saved"
    if _is_plane(ctx) and not ctx.remove_data:
        # kubeadm reset empties the folder, which may be a mount point of its own.
        shell.run(
            f"the cluster's database is kept in {saved}",
            "systemctl stop kubelet; crictl ps --name etcd --quiet | xargs -r crictl stop; "
            # Whole under its own name or not at all: an earlier database is never written over.
            f"mkdir -p -m 700 {saved} && rm -rf {saved}/new && cp -a /var/lib/etcd/member {saved}/new && sync "
            f"&& mv -T {saved}/new {saved}/member-$(date -u +%Y%m%dT%H%M%SZ)",
            unless="[ ! -d /var/lib/etcd/member ]",
        )
    kubeadm.reset("the node leaves the cluster")
    systemd.gone("kubelet is off", "kubelet.service")
    if _is_plane(ctx):
        _remove_endpoint(ctx)
    containers.stopped("no pod of the cluster runs")
    containers.unmounted("no volume of a pod is mounted", "/var/lib/kubelet")
    containers.emptied("the kubelet's state", "/var/lib/kubelet")
    rules.table_gone("no rules of kube-proxy", "kube-proxy")
    rules.chains_gone("no chains of the kubelet", "[: ]KUBE-")
    folders = ("/etc/kubernetes", "/var/log/kubernetes", "/var/log/pods", "/var/log/containers")
    files.absent("the node's configuration and logs of Kubernetes", *folders, recursive=True)
    files.absent("logs of kubeadm", *(f"{kubeadm.LOG}-{verb}.log" for verb in ("init", "join", "reset")))
    files.absent("binaries and service", UNIT, *(f"/usr/local/bin/{name}" for name in BINARIES))
    files.absent("commands' caches", "/root/.kube", recursive=True)
    if ctx.remove_data:
        files.absent("the cluster's database", saved, recursive=True)
        containers.emptied("the cluster's database", "/var/lib/etcd")
    systemd.reloaded("systemd forgets the units")
    apt.purged("packages of this role", *PACKAGES)
    if ctx.node.name == ctx.nodes(CONTROL_PLANE)[0].name:
        # Only with the first control plane: whoever takes one node off still needs it to tell the cluster.
        _forget_kubeconfig(ctx)


def _remove_endpoint(ctx: Context[Settings]) -> None:
    systemd.gone("no approval of renewals", "approve-kubelet-certificates.timer")
    files.absent("approval of renewals", APPROVER, f"{APPROVER_UNIT}.service", f"{APPROVER_UNIT}.timer")
    systemd.gone("no address that moves", "keepalived.service")
    systemd.gone("no API endpoint", "haproxy.service")
    apt.purged("the API endpoint's packages", "haproxy", "keepalived")
    folders = ("/etc/haproxy", "/var/lib/haproxy", "/etc/keepalived")
    files.absent("what the API endpoint leaves", *folders, recursive=True)


def _forget_kubeconfig(ctx: Context[Settings]) -> None:
    if not ctx.planning:
        (ctx.state / "kubeconfig").unlink(missing_ok=True)
