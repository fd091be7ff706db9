"""kubeadm: the first control plane, further ones, workers, and undoing what was only half done.

What there is to do is decided by what is there, never by what this run did. A control plane is complete once the
cluster says so: the last thing that `kubeadm init` makes is the kube-proxy DaemonSet, the last thing that a joining
control plane gets is its label. Only what the cluster does not know as complete is ever reset.
"""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from pyinfra.context import host

from onprem_mlops.engine.facts import Probe
from onprem_mlops.engine.operation import Command, operation
from onprem_mlops.engine.operations.kubectl import API, LOCAL
from onprem_mlops.site import Hidden

PKI = "/etc/kubernetes/pki"
LOG = "/var/log/kubeadm"
_LAST = f"{LOCAL}/apis/apps/v1/namespaces/kube-system/daemonsets/kube-proxy"
_CODE = "--output /dev/null --write-out '%{http_code}'"

_INIT_STATE = f"""\
{API}if [ ! -d /var/lib/etcd/member ]; then
  if [ -e /etc/kubernetes/admin.conf ] || [ -e {PKI}/ca.crt ]; then echo begun; else echo nothing; fi
else
  case "$(api {_CODE} {_LAST})" in
    200) echo complete ;;
    403 | 404) echo partial ;;
    *) echo silent ;;
  esac
fi"""
"""nothing · begun: without a database, so nothing can be lost · partial: the API runs, the end is missing (403: it does
not know its administrators yet) ·
complete · silent: there is a database but no API answers (starting, or killed before it could)."""

_RESET = "kubeadm reset --force --cri-socket unix:///run/containerd/containerd.sock"


def _logged(verb: str, command: str) -> str:
    """Run with the output in a file: kubeadm outlives a connection that breaks, and the next run waits for its end."""
    log = f"{LOG}-{verb}.log"
    return f"{{ {command} >{log} 2>&1 </dev/null || {{ tail -n 25 {log} >&2; exit 1; }}; }}"


@operation
def init(config: str) -> Iterator[Command]:
    """The first control plane of a cluster, complete; whatever an earlier run left unfinished is finished.

    Args:
        config: path on the node of kubeadm's configuration.
    """
    state = host.get_fact(Probe, command=_INIT_STATE).text.strip()
    if state == "complete":
        return
    again = f"kubeadm init --config {shlex.quote(config)} --skip-token-print"
    # The files of an earlier try are kept and checked by kubeadm itself; they are no reason to stop.
    more = "DirAvailable--var-lib-etcd,Port-6443,Port-10250,Port-10257,Port-10259,Port-2379,Port-2380," + ",".join(
        f"FileAvailable--etc-kubernetes-manifests-{one}.yaml"
        for one in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd")
    )
    resumed = f"{again} --ignore-preflight-errors={more}"
    unreadable = (
        "for one in /etc/kubernetes/*.conf; do [ ! -e $one ] || "
        'grep -q client- "$one" && kubectl config view --kubeconfig "$one" >/dev/null 2>&1 || rm -f "$one"; done'
    )
    yield Command(
        f"state() {{ {_INIT_STATE}\n}}\n"
        'now=$(state); tries=0; while [ "$now" = silent ] && [ $tries -lt 60 ] && '
        "[ -e /etc/kubernetes/manifests/kube-apiserver.yaml ]; do sleep 2; tries=$((tries+1)); now=$(state); done\n"
        f"case $now in\n complete) ;;\n nothing) {_logged('init', again)} ;;\n"
        f" begun) {_logged('reset', _RESET)}; {_logged('init', again)} ;;\n"
        f" *) {unreadable}; {_logged('init', resumed)} ;;\nesac",
        timeout=900,
    )


@dataclass(frozen=True, slots=True)
class Admission:
    """What a node needs to be let into the cluster. Lives in memory only.

    `discovery` is a kubeconfig with the cluster's address, its CA and a bootstrap token. `keys` is a tar archive
    (base64) of what all control planes share: CA keys and the key of service account tokens.
    """

    discovery: Hidden
    keys: Hidden


@operation
def token(minutes: int = 30) -> Iterator[Command]:
    """A new bootstrap token, as the command's output."""
    yield Command(
        "kubeadm token create --kubeconfig /etc/kubernetes/admin.conf "
        f"--ttl {minutes}m --description 'one deploy of onprem-mlops'"
    )


SHARED = (
    *(f"{name}.{kind}" for name in ("ca", "front-proxy-ca", "etcd/ca") for kind in ("crt", "key")),
    "sa.key",
    "sa.pub",
)
"""What all control planes have in common, below /etc/kubernetes/pki."""


def shared_keys() -> Hidden:
    """The files that all control planes share, as a tar archive in base64, read from a complete control plane."""
    names = " ".join(SHARED)
    return Hidden(host.get_fact(Probe, command=f"tar -C {PKI} -c {names} | base64 -w0").text)


JOINED = "[ -s /etc/kubernetes/kubelet.conf ] && [ -e /var/lib/kubelet/pki/kubelet-client-current.pem ]"
"""The kubelet writes its kubeconfig once the cluster has signed its certificate."""


def joined() -> bool:
    """Whether the node's kubelet belongs to a cluster."""
    return bool(host.get_fact(Probe, command=JOINED).ok)


def is_control_plane(node: str, server: str) -> str:
    """Shell: `complete` if the cluster knows the node as control plane, `partial` if not, `silent` if none answers.

    A control plane that never got an administrator's identity says `nothing`.
    """
    label = "node-role.kubernetes.io/control-plane"
    query = f"{server}/api/v1/nodes?labelSelector={label}\\&fieldSelector=metadata.name={node}"
    return (
        f"{API}if [ ! -s /etc/kubernetes/admin.conf ]; then echo nothing; else "
        f"case \"$(api --write-out ' %{{http_code}}' {query} | tr -d '\\n ')\" in "
        f'*\\"name\\":\\"{node}\\"*200) [ -e /etc/kubernetes/manifests/etcd.yaml ] && echo complete || echo partial ;; '
        "*200) echo partial ;; *) echo silent ;; esac; fi"
    )


@operation
def join(config: str, admission: Admission) -> Iterator[Command]:
    """A worker of the cluster. A join that was cut off before the kubelet was let in is undone first.

    Args:
        config: path on the node of kubeadm's configuration, which names /run/kubeadm-join/discovery.conf.
        admission: how it gets in.
    """
    if host.get_fact(Probe, command=JOINED).ok:
        return
    yield Command(
        f"{_with_discovery()} if [ -e /var/lib/kubelet/config.yaml ] || [ -e /etc/kubernetes/bootstrap-kubelet.conf ]; "
        f"then {_logged('reset', _RESET)}; fi; {_logged('join', _join(config))}",
        stdin=admission.discovery.reveal(),
        timeout=600,
    )


def _join(config: str) -> str:
    return f"kubeadm join --config {shlex.quote(config)}"


def _with_discovery() -> str:
    return (
        "umask 077; mkdir -p /run/kubeadm-join && cat >/run/kubeadm-join/discovery.conf "
        "&& trap 'rm -rf /run/kubeadm-join' EXIT || exit 1; umask 022;"
    )


@operation
def join_control_plane(config: str, admission: Admission, *, node: str, server: str) -> Iterator[Command]:
    """A further control plane. One that the cluster does not know as such yet is taken back and joined anew.

    Args:
        config: path on the node of kubeadm's configuration.
        admission: how it gets in, and the keys that it shares with the others.
        node: its name.
        server: URL of the API that other control planes answer at.
    """
    state = is_control_plane(node, server)
    if host.get_fact(Probe, command=state).text.strip() == "complete":
        return
    forget = f"kubectl --kubeconfig /etc/kubernetes/admin.conf delete node {shlex.quote(node)} --ignore-not-found"
    undo = f"{{ {forget} >/dev/null 2>&1 || true; }}; {_logged('reset', _RESET)}"
    unpack = f'mkdir -p {PKI} && printf %s "$keys" | base64 -d | tar -C {PKI} -x'
    yield Command(
        "IFS= read -r keys; "
        f"{_with_discovery()} "
        f"case $({state}) in complete) exit 0 ;; silent) if [ -e /var/lib/etcd/member ]; then "
        "echo 'the cluster does not answer, so it cannot be told whether this node belongs to it' >&2; exit 1; fi ;; "
        f"esac; if [ -e {PKI}/ca.crt ] || [ -e /var/lib/kubelet/config.yaml ]; then {undo}; fi; "
        f"umask 077; {unpack} || exit 1; umask 022; {_logged('join', _join(config))}",
        stdin=f"{admission.keys.reveal()}\n{admission.discovery.reveal()}",
        timeout=900,
    )


_ETCDCTL = (
    "crictl exec $(crictl ps --name '^etcd$' --state Running --quiet) etcdctl --endpoints=https://127.0.0.1:2379 "
    + " ".join(
        f"--{what}={PKI}/etcd/{file}"
        for what, file in (("cacert", "ca.crt"), ("cert", "healthcheck-client.crt"), ("key", "healthcheck-client.key"))
    )
)


@operation
def etcd_without(*nodes: str) -> Iterator[Command]:
    """etcd has no members of these names. Runs on another control plane.

    A control plane that lost its disk may not come back as the member it was: it would vouch for writes that it has
    forgotten.
    """
    listed = host.get_fact(Probe, command=f"{_ETCDCTL} member list").text
    members = [line.split(", ") for line in listed.splitlines()]
    for identity, _, name, *_ in members:
        if name in nodes:
            yield Command(f"{_ETCDCTL} member remove {shlex.quote(identity)} # {shlex.quote(name)}", timeout=60)


@operation
def renewed_manifests(config: str) -> Iterator[Command]:
    """Static pods of the control plane as the configuration says, written anew if it is newer than they are."""
    manifest = "/etc/kubernetes/manifests/kube-apiserver.yaml"
    quoted = shlex.quote(config)
    # Change times, not what this run did: a run that died in between heals in the next.
    if host.get_fact(Probe, command=f"[ {manifest} -nt {quoted} ]").ok:
        return
    ready = f"curl --silent --fail --max-time 3 --cacert {PKI}/ca.crt --output /dev/null {LOCAL}/readyz"
    yield Command(
        f"kubeadm init phase control-plane all --config {quoted} "
        f"&& kubeadm init phase upload-config kubeadm --config {quoted} && touch {manifest} "
        f"&& sleep 3 && for i in $(seq 90); do {ready} && exit 0; sleep 1; done; "
        "echo 'the API server is not ready 90 s after its configuration changed' >&2; crictl ps -a >&2; exit 1",
        timeout=240,
    )


@operation
def api_certificate(config: str, names: tuple[str, ...]) -> Iterator[Command]:
    """The API server's certificate is for all of these names and addresses; a new control plane adds some."""
    certificate = f"{PKI}/apiserver.crt"
    shown = host.get_fact(Probe, command=f"openssl x509 -in {certificate} -noout -ext subjectAltName").text
    if set(names) <= set(_ALTERNATIVE.findall(shown)):
        return
    yield Command(
        f"rm -f {certificate} {PKI}/apiserver.key && kubeadm init phase certs apiserver --config {shlex.quote(config)} "
        f"&& {_restarted('kube-apiserver')}",
        timeout=240,
    )


_ALTERNATIVE = re.compile(r"(?:DNS|IP Address):([^,\s]+)")

RENEW_DAYS = 122
"""A third of the year that kubeadm's certificates live."""


_USED = {
    "etcd": (f"{PKI}/etcd/server.crt", f"{PKI}/etcd/peer.crt"),
    "kube-apiserver": tuple(
        f"{PKI}/{one}.crt"
        for one in ("apiserver", "apiserver-kubelet-client", "apiserver-etcd-client", "front-proxy-client")
    ),
    "kube-controller-manager": ("/etc/kubernetes/controller-manager.conf",),
    "kube-scheduler": ("/etc/kubernetes/scheduler.conf",),
}
"""Static pods, and the files whose certificates they read when they start."""


def _behind() -> str:
    """Shell: names of the static pods that began before one of their certificates was written."""
    checks = "; ".join(f"behind {pod} {' '.join(paths)}" for pod, paths in _USED.items())
    return (
        'behind() { pid=$(pgrep -o -f "^$1 ") || return 0; began=$(( $(date +%s) - $(ps -o etimes= -p $pid) )); '
        'pod=$1; shift; for one; do if [ "$(stat -c %Y "$one")" -gt $began ]; then echo $pod; return; fi; done; }; '
        f"{checks}"
    )


@operation
def certificates() -> Iterator[Command]:
    """The control plane's certificates live for another while, and its pods run with those that are on disk.

    The authorities (ten years) are not touched. A run that died, or a person who renewed by hand, leaves pods with
    certificates that end unseen: when a pod began is what decides, not who wrote the file.
    """
    lasting = " && ".join(
        f"openssl x509 -in {PKI}/{one}.crt -noout -checkend {RENEW_DAYS * 86400}"
        for one in ("apiserver", "apiserver-kubelet-client", "etcd/server")
    )
    if not host.get_fact(Probe, command=lasting).ok:
        yield Command("kubeadm certs renew all && " + " && ".join(_restarted(one) for one in _USED), timeout=600)
        return
    behind = host.get_fact(Probe, command=_behind()).text.split()
    if behind:
        yield Command(" && ".join(_restarted(one) for one in behind), timeout=600)


def _restarted(pod: str) -> str:
    """Shell: the kubelet starts a static pod's container again, and the API is ready after it."""
    ready = f"curl --silent --fail --max-time 3 --cacert {PKI}/ca.crt --output /dev/null {LOCAL}/readyz"
    return (
        f"{{ crictl ps --name '^{pod}$' --quiet | xargs -r crictl stop --timeout 10 >/dev/null; sleep 2; "
        f"for i in $(seq 90); do {ready} && break; sleep 1; done; {ready}; }}"
    )


@operation
def reset() -> Iterator[Command]:
    """The node has left the cluster: no static pods, certificates, kubelet state or database of it any more."""
    if host.get_fact(
        Probe, command='[ -e /etc/kubernetes/kubelet.conf ] || [ -n "$(ls -A /etc/kubernetes/manifests)" ]'
    ).ok:
        yield Command(_logged("reset", _RESET), timeout=300)


@operation
def kubeconfig(path: str, current: str | None, address: str, server_name: str) -> Iterator[Command]:
    """The administrator's kubeconfig, as the command's output, if the controller's copy is not the cluster's any more.

    Args:
        path: where the controller keeps it, for people to see.
        current: what the controller has now.
        address: where the controller reaches the API, `address:port`.
        server_name: the name that the API server's certificate is for.
    """
    authority = "sed -n 's/^ *certificate-authority-data: //p' /etc/kubernetes/admin.conf"
    found = host.get_fact(Probe, command=authority).text
    if current and found and found in current and f"https://{address}\n" in current and _lasts(current):
        return
    endpoint = f"    server: https://{address}\\n    tls-server-name: {server_name}"
    yield Command(
        f"sed 's|^ *server: .*|{endpoint}|' /etc/kubernetes/admin.conf # into {shlex.quote(path)} of the controller"
    )


def _lasts(kubeconfig: str) -> bool:
    """Whether the client certificate of a kubeconfig is good for another month."""
    match = re.search(r"client-certificate-data: (\S+)", kubeconfig)
    try:
        end = x509.load_pem_x509_certificate(base64.b64decode(match[1] if match else "")).not_valid_after_utc
    except ValueError:
        return False
    return end > datetime.now(UTC) + timedelta(days=30)
