"""Lays down the pods' network: Calico as its makers ship it, with declared patches, and the cluster's DNS."""

from __future__ import annotations

import json

from onprem_mlops.engine.facts import probe
from onprem_mlops.engine.operations import containers, files, kubectl, shell
from onprem_mlops.roles import Context, removal, step

from .settings import Settings

ON = ("control_plane", "worker")
CONTROL_PLANE = "control_plane"
FOLDER = "/etc/kubernetes/addons/calico"
TEMPLATES = ("kustomization", "calico-node", "kube-controllers", "configuration", "endpoint")
IMAGES = ("image-calico-cni", "image-calico-node", "image-calico-kube-controllers", "image-coredns")
AGENT = "/apis/apps/v1/namespaces/kube-system/daemonsets/calico-node"
NODE_FILES = ("/etc/cni/net.d/10-calico.conflist", "/etc/cni/net.d/calico-kubeconfig")
NODE_FOLDERS = ("/var/lib/calico", "/var/run/calico", "/var/run/nodeagent", "/var/log/calico")


@step(on=ON)
def images(ctx: Context[Settings]) -> None:
    """Calico's images begin to come while the cluster is made; a node that runs it has them."""
    if not probe(f"[ -e {NODE_FILES[0]} ]").ok:
        containers.images("images of the network", *(ctx.image(name) for name in IMAGES))


@step(on=CONTROL_PLANE, only="first")
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


@step(on=CONTROL_PLANE, only="first")
def names(ctx: Context[Settings]) -> None:
    """Pods resolve the site's names, and questions for others go where the site says."""
    domains = min(2, len(ctx.site.in_group(*ON)))
    text = ctx.render("coredns.yaml.j2", names=ctx.names, domains=domains)
    kubectl.apply("cluster DNS", text, what="cluster DNS")
    # Nothing of the platform runs in the namespace `default`, so nothing may talk there.
    policies = "---\n".join(json.dumps(one) + "\n" for one in kubectl.default_deny("default"))
    kubectl.apply("deny all in namespace default", policies, what="policies of namespace default")


@step(on=CONTROL_PLANE, only="first", after=("calico", "names"))
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


@removal(on=ON)
def remove(ctx: Context[Settings]) -> None:
    """No link, route, rule or file of Calico is left on the node."""
    shell.run(
        "no links of Calico",
        "for one in $(ip -o link show | sed -n 's/^[0-9]*: \\(cali[^:@]*\\|vxlan.calico\\|tunl0\\)[:@].*/\\1/p'); do "
        "ip link delete $one 2>/dev/null || true; done; "
        "ip route show proto 80 | while read -r route; do ip route delete $route; done",
        unless="! ip -o link show | grep -q -e ' cali' -e ' vxlan.calico' && [ -z \"$(ip route show proto 80)\" ]",
    )
    for command in ("iptables-legacy", "iptables-nft"):
        shell.run(
            f"no rules of Calico ({command})",
            f"{command}-save | grep -v -e '[: ]cali[-:]' | {command}-restore",
            unless=f"! command -v {command}-save || ! {command}-save | grep -q '[: ]cali[-:]'",
        )
    shell.run(
        "no tables of Calico",
        "nft list tables | awk '/ calico$/ {print $2, $3}' | while read -r family name; do "
        'nft delete table "$family" "$name"; done',
        unless="! nft list tables | grep -q ' calico$'",
    )
    shell.run(
        "no address sets of Calico",
        "for one in $(ipset list -n | grep ^cali); do ipset destroy $one; done",
        unless="! command -v ipset || ! ipset list -n | grep -q ^cali",
    )
    files.absent("Calico's configuration", *NODE_FILES, "/opt/cni/bin/calico", "/opt/cni/bin/calico-ipam")
    files.absent("Calico's state", *NODE_FOLDERS, FOLDER, recursive=True)
