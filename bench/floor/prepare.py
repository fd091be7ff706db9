"""What floor.sh starts from, taken from nodes that our own deploy has laid down, before its clock starts."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any
from unittest.mock import patch

from onprem_mlops.artifacts.publish import StorePublisher
from onprem_mlops.deployment import Work, context_maker
from onprem_mlops.endpoint import endpoint
from onprem_mlops.engine.operations import kubectl
from onprem_mlops.plan import load_phases, plan
from onprem_mlops.site import Node, Site
from onprem_mlops.site.material import SiteMaterial

NODES = ("cp1", "w1", "s1", "b1")
"""The lab's nodes, which floor.sh knows by name."""

CONFIGURATION = (
    "etc/apt/apt.conf.d/50onprem-mlops",
    "etc/apt/apt.conf.d/90onprem-mlops-upgrades",
    "etc/apt/keyrings",
    "etc/apt/sources.list.d",
    "etc/chrony/onprem-mlops.conf",
    "etc/containerd",
    "etc/crictl.yaml",
    "etc/haproxy/haproxy.cfg",
    "etc/hosts",
    "etc/kubernetes/addons",
    "etc/kubernetes/kubeadm.yaml",
    "etc/kubernetes/kubelet.conf.d",
    "etc/kubernetes/policies",
    "etc/modules-load.d/onprem-mlops.conf",
    "etc/nftables.d",
    "etc/onprem-mirror",
    "etc/ssh/sshd_config.d/00-onprem-mlops.conf",
    "etc/sudoers.d/90-onprem-mlops",
    "etc/sysctl.d/90-onprem-mlops.conf",
    "etc/systemd/journald.conf.d",
    "etc/systemd/system/approve-kubelet-certificates.service",
    "etc/systemd/system/approve-kubelet-certificates.timer",
    "etc/systemd/system/chrony.service.d",
    "etc/systemd/system/containerd.service",
    "etc/systemd/system/kubelet.service",
    "etc/systemd/system/nftables.service.d",
    "etc/systemd/system/nginx.service",
    "etc/systemd/system/onprem-mirror.service",
    "etc/systemd/system/onprem-registry.service",
    "usr/local/sbin/approve-kubelet-certificates",
    "usr/local/share/ca-certificates/onprem-mlops.crt",
    "var/lib/onprem-mlops",
)
"""What a node's archive holds, as far as the node has it: text that roles wrote, nothing that a program made."""

BINARIES = {
    "containerd": ("containerd", "containerd-shim-runc-v2", "ctr"),
    "crictl": ("crictl",),
    "kubernetes": ("kubeadm", "kubectl", "kubelet"),
}
PLUGINS = {"cni-plugins": ("loopback", "host-local", "portmap", "bandwidth", "tuning")}

IMAGES = ("kube-proxy", "calico-cni", "calico-node", "calico-kube-controllers", "coredns")
PLANE_IMAGES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", *IMAGES)
MEMBERS = {"cp1": PLANE_IMAGES, "w1": IMAGES}
"""Nodes of the cluster, and the images that they fetch ahead."""


def prepare(site: Site, folder: Path) -> None:
    """Write into `folder` all that floor.sh reads. The nodes of the site are laid down and running."""
    folder.mkdir(mode=0o700)
    (folder / "ssh_config").write_text(_ssh_config(site, folder))
    (folder / "site.env").write_text(_names(site))
    store = StorePublisher(site)
    for node in NODES:
        _fetch(
            folder, node, f"cd / && ls -d {' '.join(CONFIGURATION)} 2>/dev/null | tar -c -T -", folder / f"{node}.tar"
        )
    for node, images in MEMBERS.items():
        (folder / f"{node}.downloads").write_text(_downloads(store))
        (folder / f"{node}.images").write_text(" ".join(store.image(f"image-{one}") for one in images))
    # Times below the second are kept: they are how the mirror's own list of its files knows them.
    tree = "cd /srv/mirror && tar --format=posix -c"
    first = "current lock trees/*.list trees/*.stat trees/*/apt trees/*/files/registry"
    _fetch(folder, "s1", f"{tree} {first}", folder / "mirror-packages.tar")
    _fetch(
        folder,
        "s1",
        f"{tree} --exclude=trees/*/apt --exclude=trees/*/files/registry trees/*/",
        folder / "mirror-rest.tar",
    )
    (folder / "objects.yaml").write_text(_objects(site, store))


def _ssh_config(site: Site, folder: Path) -> str:
    known = folder / "known_hosts"
    known.write_text("".join(f"{node.address} {node.host_key}\n" for node in site.nodes))
    hosts = "".join(_host(site, node) for node in site.nodes)
    return (
        f"{hosts}Host *\nUserKnownHostsFile {known}\nGlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\n"
        "IdentitiesOnly yes\nBatchMode yes\nLogLevel ERROR\n"
        f"ControlMaster auto\nControlPersist 10m\nControlPath {folder}/%h\n"
    )


def _host(site: Site, node: Node) -> str:
    to = endpoint(site, node)
    return f"Host {node.name}\nHostName {to.address}\nPort {to.port}\nUser {to.user}\nIdentityFile {to.key}\n"


def _names(site: Site) -> str:
    """Variables of the script."""
    cluster: Any = site.settings("kubernetes")
    values = {
        "mirror_url": site.mirror_url,
        "endpoint": f"https://{cluster.endpoint(site)}",
        "api_address": f"https://{site.api_address}:{cluster.endpoint_port}",
        "api_name": cluster.endpoint_name(site),
    }
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def _downloads(store: StorePublisher) -> str:
    """A configuration of curl: what it fetches, and where to."""
    lines = []
    for artifacts, where in ((BINARIES, "usr/local/bin"), (PLUGINS, "opt/cni/bin")):
        for artifact, names in artifacts.items():
            lines += [f'url = "{store.file(artifact, one).url}"\noutput = "{where}/{one}"' for one in names]
    return "\n".join(lines)


def _objects(site: Site, store: StorePublisher) -> str:
    """What is applied to the cluster beside Calico, as our role writes it: manifests, one after the other."""
    graph = plan(site, load_phases("infrastructure"))
    step = next(one for one in graph if one.id == "network.names")
    context = context_maker(
        Work(site, graph, "infrastructure", planning=True), store, SiteMaterial(site, planning=True)
    )
    with patch.object(kubectl, "apply") as apply:
        step.step.function(context(step, step.nodes[0]))
    return "---\n".join(str(call.args[1]) for call in apply.call_args_list)


def _fetch(folder: Path, node: str, command: str, to: Path) -> None:
    with to.open("wb") as file:
        subprocess.run(_remote(folder, node, command), check=True, stdin=subprocess.DEVNULL, stdout=file)


def _remote(folder: Path, node: str, command: str) -> list[str]:
    """Without a multiplexed connection, so that none is open when the clock starts."""
    return [
        "ssh",
        "-F",
        str(folder / "ssh_config"),
        "-o",
        "ControlPath=none",
        node,
        f"sudo -n sh -c {shlex.quote(command)}",
    ]
