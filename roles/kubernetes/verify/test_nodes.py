"""What each node of the cluster shows: kubelet, processes, files, certificates."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

import pytest

from onprem_mlops.verify.suite import LEAST_DAYS_LEFT, NodeHost, scan_from

SERVER_FLAGS = {
    "authorization-mode": "Node,RBAC",
    "profiling": "false",
    "tls-min-version": "VersionTLS12",
    "kubelet-certificate-authority": "/etc/kubernetes/pki/ca.crt",
    "service-account-extend-token-expiration": "false",
}
"""Of kube-apiserver; CIS 1.2."""

CONTROLLER_FLAGS = {"profiling": "false", "bind-address": "127.0.0.1", "use-service-account-credentials": "true"}
SCHEDULER_FLAGS = {"profiling": "false", "bind-address": "127.0.0.1"}
ETCD_FLAGS = {"client-cert-auth": "true", "peer-client-cert-auth": "true"}
FORBIDDEN = {
    "insecure-port",
    "insecure-bind-address",
    "token-auth-file",
    "basic-auth-file",
    "auto-tls",
    "peer-auto-tls",
}


def test_kubelet(node: NodeHost, versions: Mapping[str, str]) -> None:
    """The kubelet runs, also after a reboot, in the version of the catalogue."""
    service = node.service("kubelet")
    assert service.is_running, f"{node.name}: the kubelet does not run"
    assert service.is_enabled, f"{node.name}: the kubelet would not start at boot"
    found = node.check_output("/usr/local/bin/kubelet --version").split()[-1].removeprefix("v")
    assert found == versions["kubernetes"], f"{node.name}: kubelet {found}, not {versions['kubernetes']}"
    # A file replaced under a running process shows as deleted.
    running = node.check_output("readlink /proc/$(systemctl show -P MainPID kubelet)/exe")
    assert not running.endswith("(deleted)"), f"{node.name}: the kubelet was replaced and not restarted"


@pytest.mark.controls("CIS Kubernetes 4.2.4")
def test_read_only_port(node: NodeHost) -> None:
    """The kubelet's read-only port is closed, even for the node itself."""
    targets = [(node.address, 10255), ("127.0.0.1", 10255)]
    answers = scan_from(node, targets)
    opened = [f"{address}:{port}" for (address, port), answer in answers.items() if answer == "open"]
    assert not opened, f"{node.name}: {', '.join(opened)} is open"


@pytest.mark.controls("CIS Kubernetes 4.2.1")
def test_kubelet_refuses_anonymous(node: NodeHost) -> None:
    """The kubelet answers nobody without a certificate, and shows one that the cluster signed for this node."""
    said = node.run(
        "curl -sS -o /dev/null -w '%%{http_code}' --max-time 5 --cacert /etc/kubernetes/pki/ca.crt "
        "--resolve %s:10250:%s https://%s:10250/pods",
        node.name,
        node.address,
        node.name,
    )
    assert said.rc == 0, (
        f"{node.name}: the kubelet's certificate is not the cluster's for this node: {said.stderr.strip()}"
    )
    assert said.stdout == "401", f"{node.name}: the kubelet answers an anonymous request with {said.stdout}"


@pytest.mark.controls("CIS Kubernetes 1.1", "CIS Kubernetes 4.1")
def test_secret_files_are_private(node: NodeHost) -> None:
    """Keys and kubeconfigs can be read by root only."""
    found = node.lines(
        "find -L /etc/kubernetes /var/lib/kubelet/pki \\( -name '*.key' -o -name '*.conf' -o -name '*.pem' "
        "-o -path '*/policies/*' -o -path '*/manifests/*' \\) ! -path '*/kubelet.conf.d/*' ! -name nodes -type f "
        "-printf '%m %U %p\\n'"
    )
    assert found, f"{node.name}: no key and no kubeconfig anywhere"
    wrong = [line for line in found if int(line.split()[0], 8) & 0o077 or line.split()[1] != "0"]
    assert not wrong, f"{node.name}: {'; '.join(wrong)} (not 600 root)"


@pytest.mark.on("control_plane")
@pytest.mark.controls("CIS Kubernetes 1.1.11")
def test_database_is_private(node: NodeHost) -> None:
    """Only root can look into the cluster's database."""
    modes = [int(mode, 8) for mode in node.lines("stat -c %a /var/lib/etcd /var/lib/etcd/member")]
    assert any(mode & 0o077 == 0 for mode in modes), f"{node.name}: /var/lib/etcd is {modes[0]:o}, member {modes[1]:o}"


def _flags(node: NodeHost, command: str) -> dict[str, str]:
    """The flags that a process runs with, as the kernel shows them."""
    pids = node.run("pgrep -f %s", rf"^(/\S*/)?{command}( |$)").stdout.split()
    assert len(pids) == 1, f"{node.name}: {len(pids)} processes of {command}"
    words = node.check_output("tr '\\0' '\\n' < /proc/%s/cmdline", pids[0]).splitlines()
    pairs = (word.removeprefix("--").partition("=") for word in words[1:] if word.startswith("--"))
    return {name: value for name, _, value in pairs}


def _differences(node: NodeHost, command: str, wanted: Mapping[str, str]) -> list[str]:
    flags = _flags(node, command)
    wrong = [
        f"{command} --{key}={flags.get(key, '(not given)')}, not {value}"
        for key, value in wanted.items()
        if flags.get(key) != value
    ]
    return wrong + [f"{command} has --{key}" for key in FORBIDDEN & flags.keys() if flags[key] != "false"]


@pytest.mark.on("control_plane")
@pytest.mark.controls("CIS Kubernetes 1.2", "CIS Kubernetes 1.3", "CIS Kubernetes 1.4", "CIS Kubernetes 2")
def test_flags(node: NodeHost) -> None:
    """The control plane's processes run with the flags that keep it safe."""
    wrong = _differences(node, "kube-apiserver", SERVER_FLAGS)
    wrong += _differences(node, "kube-controller-manager", CONTROLLER_FLAGS)
    wrong += _differences(node, "kube-scheduler", SCHEDULER_FLAGS)
    wrong += _differences(node, "etcd", ETCD_FLAGS)
    assert not wrong, f"{node.name}: {'; '.join(wrong)}"


@pytest.mark.on("control_plane")
@pytest.mark.controls("CIS Kubernetes 1.2.15", "CIS Kubernetes 1.2.27")
def test_protections_are_configured(node: NodeHost) -> None:
    """The API server encrypts secrets, writes an audit log, and limits what nodes may change."""
    flags = _flags(node, "kube-apiserver")
    missing = [
        key for key in ("encryption-provider-config", "audit-log-path", "audit-policy-file") if not flags.get(key)
    ]
    assert not missing, f"{node.name}: kube-apiserver runs without --{', --'.join(missing)}"
    plugins = flags.get("enable-admission-plugins", "").split(",")
    assert "NodeRestriction" in plugins, f"{node.name}: admission plugins are {', '.join(plugins)}"
    assert "PodSecurity" not in flags.get("disable-admission-plugins", ""), f"{node.name}: PodSecurity is disabled"


@pytest.mark.on("control_plane")
def test_certificates(node: NodeHost) -> None:
    """Every certificate of the control plane is signed by its authority and good for weeks.

    A deploy renews them once a third of their life is left.
    """
    wrong = []
    for name in CLIENTS:
        written = node.run("sed -n 's/^ *client-certificate-data: //p' %s | base64 -d", f"/etc/kubernetes/{name}.conf")
        ends = node.run(f"openssl x509 -noout -checkend {LEAST_DAYS_LEFT * 86400} <<'EOF'\n{written.stdout}\nEOF")
        wrong += [f"{name}.conf ends within {LEAST_DAYS_LEFT} days"] if ends.rc else []
    for leaf, authority in AUTHORITIES.items():
        folder = "/etc/kubernetes/pki"
        said = node.run("openssl verify -CAfile %s %s", f"{folder}/{authority}.crt", f"{folder}/{leaf}.crt")
        ends = node.run("openssl x509 -noout -checkend %s -in %s", str(LEAST_DAYS_LEFT * 86400), f"{folder}/{leaf}.crt")
        wrong += [f"{leaf}: {said.stderr.strip() or said.stdout.strip()}"] if said.rc else []
        wrong += [f"{leaf} ends within {LEAST_DAYS_LEFT} days"] if ends.rc else []
    assert not wrong, f"{node.name}: {'; '.join(wrong)}"


AUTHORITIES = {
    "apiserver": "ca",
    "apiserver-kubelet-client": "ca",
    "front-proxy-client": "front-proxy-ca",
    "apiserver-etcd-client": "etcd/ca",
    "etcd/server": "etcd/ca",
    "etcd/peer": "etcd/ca",
    "etcd/healthcheck-client": "etcd/ca",
}
"""Each certificate in kubeadm's folder, and who must have signed it."""

CLIENTS = ("admin", "controller-manager", "scheduler")
"""Kubeconfigs of the control plane that hold a client certificate."""

READ_AT_START = {
    "etcd": ("pki/etcd/server.crt", "pki/etcd/peer.crt"),
    "kube-apiserver": ("pki/apiserver.crt", "pki/apiserver-kubelet-client.crt", "pki/apiserver-etcd-client.crt"),
    "kube-controller-manager": ("controller-manager.conf",),
    "kube-scheduler": ("scheduler.conf",),
}
"""Processes of the control plane, and the files below /etc/kubernetes whose certificates each holds in memory."""


@pytest.mark.on("control_plane")
def test_certificates_in_use(node: NodeHost) -> None:
    """Every process of the control plane began after its certificates were written.

    One that began before holds certificates that end earlier than those on disk say. A deploy restarts it.
    """
    wrong = []
    now = int(node.check_output("date +%s"))
    for process, files in READ_AT_START.items():
        pid = node.check_output("pgrep -o -f %s", f"^{process} ")
        began = now - int(node.check_output("ps -o etimes= -p %s", pid))
        written = {one: int(node.check_output("stat -c %%Y %s", f"/etc/kubernetes/{one}")) for one in files}
        # Both are whole seconds, read one after the other.
        wrong += [f"{process} runs with what {one} held before" for one, at in written.items() if at > began + 2]
    assert not wrong, f"{node.name}: {'; '.join(wrong)}"


def test_client_certificate_of_kubelet(node: NodeHost) -> None:
    """The kubelet's own certificates name this node, are signed by the cluster, and are not about to end."""
    for kind in ("client", "server"):
        path = f"/var/lib/kubelet/pki/kubelet-{kind}-current.pem"
        said = node.run("openssl verify -CAfile /etc/kubernetes/pki/ca.crt %s", path)
        assert said.rc == 0, f"{node.name}: {path}: {said.stderr.strip()}"
        subject = node.check_output("openssl x509 -noout -subject -nameopt RFC2253 -in %s", path)
        assert re.search(rf"CN=system:node:{re.escape(node.name)}(,|$)", subject), (
            f"{node.name}: {path} is for {subject}"
        )
        left = node.run("openssl x509 -noout -checkend %s -in %s", str(7 * 86400), path)
        assert left.rc == 0, f"{node.name}: {path} ends within a week and was not renewed"


@pytest.mark.on("control_plane")
def test_local_health_ports_stay_local(node: NodeHost) -> None:
    """Metrics of etcd, scheduler and controllers answer on the node's loopback only."""
    ports = (2381, 10257, 10259, 10248, 10249, 10256)
    answers = scan_from(node, [(node.address, port) for port in ports])
    opened = [str(port) for (_, port), answer in answers.items() if answer == "open"]
    assert not opened, f"{node.name}: {node.address} answers on {', '.join(opened)}"


def test_images_come_from_known_registries(node: NodeHost) -> None:
    """Every image on the node has a name that the site's mirror serves."""
    from onprem_mlops.artifacts import Store

    served = {reference.rpartition(":")[0] for manifest in Store().manifests() for reference in _references(manifest)}
    found = {line.split()[0] for line in node.lines("crictl images | tail -n +2") if line.split()[0] != "<none>"}
    foreign = sorted(name for name in found if name not in served)
    assert not foreign, f"{node.name}: images of nobody: {shlex.join(foreign)}"


def _references(manifest: object) -> list[str]:
    return [image.reference for image in getattr(manifest, "images", ())]
