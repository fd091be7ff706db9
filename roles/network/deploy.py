"""Lays down the pods' network: Calico as its makers ship it, with declared patches, and the cluster's DNS."""

from __future__ import annotations

import hashlib
import json

from onprem_mlops.engine.facts import probe
from onprem_mlops.engine.operations import containers, files, kubectl, rules, shell, systemd
from onprem_mlops.roles import Context, removal, step

from .settings import Settings

ON = ("control_plane", "worker")
CONTROL_PLANE = "control_plane"
FOLDER = "/etc/kubernetes/addons/calico"
TEMPLATES = ("kustomization", "calico-node", "kube-controllers", "configuration", "endpoint")
IMAGES = ("image-calico-cni", "image-calico-node", "image-calico-kube-controllers", "image-coredns")
AGENT = "/apis/apps/v1/namespaces/kube-system/daemonsets/calico-node"
NODE_FILES = ("/etc/cni/net.d/10-calico.conflist", "/etc/cni/net.d/calico-kubeconfig")
NODE_FOLDERS = ("/var/lib/calico", "/run/calico", "/run/nodeagent", "/var/log/calico")
CNI_PLUGINS = ("/opt/cni/bin/calico", "/opt/cni/bin/calico-ipam")
MANIFESTS = ("/etc/kubernetes/addons",)


@step(on=ON)
def images(ctx: Context[Settings]) -> None:
    """Calico's images begin to come while the cluster is made; a node that runs it has them."""
    if not probe(f"[ -e {NODE_FILES[0]} ]").ok:
        containers.images("images of the network", *(ctx.image(name) for name in IMAGES))


@step(on=CONTROL_PLANE, only="any")
def calico(ctx: Context[Settings]) -> None:
    """Calico's objects in the cluster. Pods on every node start as soon as its agent is there."""
    manifest = ctx.file("calico-manifest", "calico-vxlan.yaml")
    name = f"calico-{manifest.version}.yaml"
    authority = ctx.settings_of("node").authority_path
    files.download("Calico's manifest", f"{FOLDER}/{name}", manifest, authority=authority, mode="644")
    port = ctx.settings_of("kubernetes").endpoint_port
    for template in TEMPLATES:
        text = ctx.render(f"{template}.yaml.j2", manifest=name, port=port)
        files.content(f"Calico: {template}", f"{FOLDER}/{template}.yaml", text)
    kubectl.apply_folder("Calico", FOLDER, what="Calico", last=AGENT)


@step(on=CONTROL_PLANE, only="any")
def names(ctx: Context[Settings]) -> None:
    """Pods resolve the site's names, and questions for others go where the site says."""
    # Nodes that are tainted, for GPU work say, do not take cluster DNS.
    open_to_all = [node for node in ctx.site.in_group(*ON) if not ctx.site.taints_of(node)]
    domains = min(2, max(1, len(open_to_all)))
    corefile = ctx.render("Corefile.j2", names=ctx.names)
    digest = hashlib.sha256(corefile.encode()).hexdigest()[:16]
    text = ctx.render("coredns.yaml.j2", corefile=corefile, digest=f'"{digest}"', domains=domains)
    kubectl.apply("cluster DNS", text, what="cluster DNS")
    # Nothing of the platform runs in the namespace `default`, so nothing may talk there.
    policies = "---\n".join(json.dumps(one) + "\n" for one in kubectl.default_deny("default"))
    kubectl.apply("deny all in namespace default", policies, what="policies of namespace default")


@step(on=CONTROL_PLANE, only="any", after=("calico", "names"))
def ready(ctx: Context[Settings]) -> None:
    """The network is up on every node, and names are answered."""
    kubectl.rolled_out(
        "network is up",
        "daemonsets/calico-node",
        "deployments/calico-kube-controllers",
        "deployments/coredns",
        namespace="kube-system",
        seconds=ctx.settings.ready_seconds,
    )


@step(on=ON, after=("ready",))
def connected(ctx: Context[Settings]) -> None:
    """The node's own agent says that pods are reached from here."""
    shell.wait(
        "the network's agent on this node",
        "curl -fsS -m 2 -o /dev/null http://localhost:9099/readiness",
        seconds=ctx.settings.ready_seconds,
        otherwise="crictl ps -a --name calico-node; systemctl is-active kubelet containerd",
    )


@removal(on=ON)
def remove_from_node(ctx: Context[Settings]) -> None:
    """No link, route, rule or file of Calico is left on the node; the kubelet runs again, without a pods' network."""
    shell.run(
        "the agent of the network ends",
        "systemctl start kubelet 2>/dev/null; crictl ps --quiet --label io.kubernetes.container.name=calico-node "
        "| xargs -r crictl --timeout 30s stop >/dev/null; crictl ps -a --quiet --label "
        "io.kubernetes.container.name=calico-node | xargs -r crictl rm --force >/dev/null; true",
        unless='[ -z "$(crictl ps -a --quiet --label io.kubernetes.container.name=calico-node)" ] '
        "&& ! { systemctl is-enabled -q kubelet && ! systemctl is-active -q kubelet; }",
    )
    rules.chains_gone("no chains and rules of Calico", '[: "]cali[-:]')
    rules.table_gone("no table of Calico", "calico")
    rules.sets_gone("no address sets of Calico", "cali")
    rules.links_gone("no links and routes of Calico", "cali[0-9a-f]*\\|vxlan.calico\\|tunl0", protocol=80)
    files.absent("Calico's configuration", *NODE_FILES, *CNI_PLUGINS)
    files.absent("Calico's state", *NODE_FOLDERS, *MANIFESTS, recursive=True)
    files.no_empty_folders("folders of CNI", "/etc/cni/net.d", "/etc/cni")


@removal(on=CONTROL_PLANE)
def remove_from_cluster(ctx: Context[Settings]) -> None:
    """The cluster has no objects of Calico any more; its Corefile stays, it is the cluster's own."""
    if ctx.node != ctx.nodes(CONTROL_PLANE)[0]:
        return
    kubectl.folder_absent("no objects of Calico", FOLDER, last=AGENT)
    policies = ("networkpolicy/default-deny", "networkpolicy/allow-dns")
    kubectl.absent("no policies in namespace default", *policies, namespace="default")


@removal(on=ON)
def remove_pods(ctx: Context[Settings]) -> None:
    """Pods of the network end while their plugin can still take their addresses back."""
    if probe("crictl pods --quiet").text:
        systemd.service("kubelet rests: it would start them again", "kubelet.service", running=False)
        containers.stopped("no pod has an address", of_pod_network=True)
