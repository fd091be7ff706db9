"""What a node of a running cluster is taken through one at a time: emptied, changed, booted, let in again."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyinfra.api.exceptions import ConnectError
from pyinfra.context import host

from onprem_mlops.engine.connector import FramedConnector
from onprem_mlops.engine.facts import Probe, probe
from onprem_mlops.engine.operation import Command, operation
from onprem_mlops.engine.operations.guard import output
from onprem_mlops.engine.operations.kubectl import KUBECTL
from onprem_mlops.errors import MlopsError
from onprem_mlops.shell import Connection, Endpoint

if TYPE_CHECKING:
    from pyinfra.api.host import Host
    from pyinfra.api.state import State

BOOT_SECONDS = 900
"""A server with much memory and many cards takes minutes until it even begins to boot."""
GONE_SECONDS = 60
OFFER_SECONDS = 180
TRIAL_SECONDS = 90
"""A new node pulls the trial's image first."""
TRYING = "trying"
"""Value of the label while it is not known yet whether work can be done on the node."""
_TRIAL_NAMESPACE = "kube-system"
_LONGEST = BOOT_SECONDS + OFFER_SECONDS + TRIAL_SECONDS + 60
"""How long what an earlier run began may go on, in seconds."""
EMPTIED = "onprem-mlops.local/emptied"
"""Annotation of a node that we cordoned, and that we may let in again; its value says who of us."""
DEPLOY = "true"
"""Its value where a deploy did."""
ACCOUNT = "/etc/kubernetes/kubelet.conf"
"""The node's own account with the cluster."""
OWN_KUBECTL = f"/usr/local/bin/kubectl --kubeconfig {ACCOUNT}"
"""kubectl with the node's own account."""
_KUBECTL = f"{KUBECTL} --request-timeout=20s"
"""Where the API server is away, that is said and not waited for."""
_BOOT = "cat /proc/sys/kernel/random/boot_id"


class Elsewhere(Command):
    """A command on the first of some other nodes that can be reached, over a connection of its own."""

    def __init__(self, endpoints: Sequence[Endpoint], command: str, *, seconds: int) -> None:
        super().__init__(f": on {' or '.join(one.name for one in endpoints)}: {command}")
        self._endpoints, self._shell, self._seconds = endpoints, command, seconds

    def carry_out(self, state: State, host: Host, connector_arguments: Any) -> Any:
        """Success, and what it said there."""
        silent = []
        for endpoint in self._endpoints:
            connection = Connection(endpoint)
            try:
                connection.connect()
            except MlopsError as error:
                silent.append(error.message)
                continue
            try:
                done = connection.run(self._shell, timeout=self._seconds)
            except MlopsError as error:
                # Not on another one: there it goes on to its end.
                return False, output(error.message, error=True)
            finally:
                connection.close()
            return done.status == 0, output(f"{done.text}\n{done.error_text}".strip(), error=done.status != 0)
        return False, output("\n".join(silent), error=True)


class Boot(Command):
    """The node boots, and the run goes on once it is back."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"systemctl reboot  # and back within {seconds} s")
        self._seconds = seconds

    def carry_out(self, state: State, host: Host, connector_arguments: Any) -> Any:
        """Success once the node runs another boot than before."""
        connector = host.connector
        assert isinstance(connector, FramedConnector)
        connection = connector.connection
        before = connection.run(_BOOT, timeout=10).text
        # The answer may be cut off by what it asks for.
        connection.run("systemd-run -q --on-active=1 systemctl reboot", timeout=20)
        end = time.monotonic() + self._seconds
        why = "it did not go down"
        while time.monotonic() < end:
            time.sleep(2)
            connection.close()
            try:
                connection.connect()
                if connection.run(_BOOT, timeout=10).text != before:
                    return True, output("")
            except (MlopsError, ConnectError) as error:
                why = str(error)
        return False, output(f"{host.name} was told to boot and is not back after {self._seconds} s: {why}", error=True)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a node stands in the cluster."""

    cordoned: bool
    """No pod is sent there."""
    mark: str
    """Who of us cordoned it: `DEPLOY`, or what watches the node; empty if nobody of us did."""
    label: str
    """The label that lets the pods in that need what the node was emptied for; empty if it has none."""

    @property
    def ours(self) -> bool:
        """It was cordoned by us, and waits to be let in: a person's cordon is theirs to take back."""
        return self.cordoned and bool(self.mark)


def standing(name: str, label: str) -> Standing:
    """How the current node stands, by its own account with the cluster; one that is in none has no mark and no label.

    MlopsError if the cluster does not say: what cannot be seen must not be taken for something that has to change.

    Args:
        name: of the node in the cluster.
        label: key of a label.
    """
    template = (
        f'{{{{.spec.unschedulable}}}} {{{{index .metadata.annotations "{EMPTIED}"}}}} '
        f'{{{{index .metadata.labels "{label}"}}}}'
    )
    # What kubectl says beside the answer (a server of other kinds that is away, say) is shown only if there is none.
    get = f"{OWN_KUBECTL} get node {shlex.quote(name)} -o go-template={shlex.quote(template)}"
    asked = probe(
        f"[ -e {ACCOUNT} ] || {{ echo - - -; exit 0; }}; said=$(mktemp); {get} 2>$said; status=$?; "
        "[ $status = 0 ] || cat $said; rm -f $said; exit $status"
    )
    fields = ["" if one == "-" else one for one in asked.text.replace("<no value>", "-").split()]
    if not asked.ok or len(fields) != 3:
        raise MlopsError(
            f"{name} cannot see in the cluster how it stands there: {asked.text.strip()}",
            "Is the Kubernetes API up, and reachable from that node? Then run the same command again.",
        )
    cordoned, mark, value = fields
    return Standing(cordoned == "true", mark, value)


@operation
def unmarked(name: str, stands: Standing) -> Iterator[Command]:
    """A node that a person let in does not bear our mark: the next cordon may be theirs.

    Args:
        name: of the current node in the cluster.
        stands: how it stands there.
    """
    if stands.mark and not stands.cordoned:
        yield Command(f"{OWN_KUBECTL} annotate node {shlex.quote(name)} {EMPTIED}-")


@operation
def emptied(
    name: str,
    planes: Sequence[Endpoint],
    *,
    label: str,
    leaving: str,
    resource: str,
    drain: bool,
    seconds: int,
    alone: bool = True,
) -> Iterator[Command]:
    """No pod runs on a node but those of daemon sets, and none is sent there. Disruption budgets are kept.

    A node that cannot be emptied is let in again, as it was. What pods keep in volumes of kind emptyDir is lost.

    Args:
        name: of the node in the cluster.
        planes: control planes, to ask one of.
        label: key of the label that daemon sets want which use what is to be changed. It is taken off the node.
        leaving: selector of these daemon sets' pods, which must be gone from the node, too.
        resource: what the node offers only while they run: the cluster must know that it does not any more, so that
            what it knows later is new.
        drain: False leaves the other pods where they are: only what offers the resource begins anew.
        seconds: how long the other pods may take to go.
        alone: no node is drained while another one is out that a deploy, this or an earlier one, has emptied: what that
            one did not survive the next would not, either.
    """
    node = shlex.quote(name)
    pods = f"{_KUBECTL} get pods -A -l {leaving} --field-selector spec.nodeName={node} -o name"
    script = (
        f"{_no_other_is_out(name) if drain and alone else ''}"
        f"{_no_trial(name)}\n"
        f"{_drained(name, label, seconds) if drain else ''}"
        f"{_KUBECTL} label node {node} {label}- || exit 1\n"
        f'gone() {{ found=$({pods}) && echo "$found" && [ -z "$found" ]; }}\n'
        f"await {GONE_SECONDS} gone || give_up 'pods with {leaving} do not leave {name}'\n"
        f'none() {{ n=$({_offered(node, resource)}) && echo "$n" && case $n in [1-9]*) false ;; esac; }}\n'
        f"await {GONE_SECONDS} none || give_up '{name} offers {resource} without them'\n"
    )
    yield Elsewhere(planes, _unbroken(name, script), seconds=_LONGEST + seconds + 180)


def _no_other_is_out(name: str) -> str:
    """Shell: end if another node is cordoned with a deploy's mark."""
    template = (
        "{{range .items}}{{if .spec.unschedulable}}{{.metadata.name}} "
        f'{{{{with .metadata.annotations}}}}{{{{index . "{EMPTIED}"}}}}{{{{end}}}}{{{{"\\n"}}}}{{{{end}}}}{{{{end}}}}'
    )
    others = f"""awk '$2 == "{DEPLOY}" && $1 != "{name}" {{ print $1 }}'"""
    return (
        f"nodes=$({_KUBECTL} get nodes -o go-template={shlex.quote(template)}) || exit 1\n"
        f'for other in $(echo "$nodes" | {others}); do\n'
        f'echo "{name} stays as it is: $other was emptied by an earlier deploy and is not let in again yet. Finish it '
        "first: ./mlops deploy --node $other. If it is lost: ./mlops kubectl -- delete node $other, or, to go on "
        f'without it, ./mlops kubectl -- annotate node $other {EMPTIED}-"; exit 1; done\n'
    )


def _drained(name: str, label: str, seconds: int) -> str:
    """Shell: cordoned with our mark, and drained; if that fails, let in again, if it was we who cordoned it."""
    node = shlex.quote(name)
    keys = f'{{{{index .metadata.annotations "{EMPTIED}"}}}}/{{{{index .metadata.labels "{label}"}}}}'
    stands = f"{{{{.spec.unschedulable}}}}/{keys}"
    # Cordon and mark at once: between them, who watches the node would take the mark for a leftover.
    ours = {"metadata": {"annotations": {EMPTIED: DEPLOY}}, "spec": {"unschedulable": True}}
    return (
        f"was=$({_KUBECTL} get node {node} -o go-template={shlex.quote(stands)}) || exit 1\n"
        f"case $was in true/*) ;; *) {_KUBECTL} patch node {node} -p {shlex.quote(json.dumps(ours))} "
        "|| exit 1 ;; esac\n"
        f"{KUBECTL} drain {node} --ignore-daemonsets --delete-emptydir-data --timeout={seconds}s || {{\n"
        # A person's cordon is theirs. Nor is a node let in that an earlier deploy emptied, and may have changed by
        # half: its label is gone by then.
        f"case $was in 'true/{DEPLOY}/<no value>' | true/{DEPLOY}/{TRYING}) ;; "
        f"true/{DEPLOY}/* | [!t]*) {_uncordoned(node)} ;; esac\n"
        f"echo '{name} stays as it is. Finish or delete the pods that do not go (a budget keeps them, or nothing would "
        "start them again elsewhere), or give them more time'; exit 1; }\n"
    )


_AWAIT = """\
await() {
  end=$(( $(date +%s) + $1 )); shift
  until said=$("$@" 2>&1); do [ $(date +%s) -lt $end ] || return 1; sleep 0.5; done
}
last() { echo "$said" | tail -n 1; }
give_up() { echo "$said"; echo "$1"; exit 1; }
"""
"""Shell: `await SECONDS FUNCTION` until it succeeds; `said` is all that it printed then, its answer in the last line
and before it what kubectl had to warn of; if it does not know the answer, why."""


def _unbroken(name: str, script: str) -> str:
    """Shell: a script that goes on to its end when the run that began it dies, and that the next run waits for.

    A drain that is cut off in the middle would let the node in again under the hands of the next run.
    """
    lock = shlex.quote(f"/run/onprem-mlops-rolling-{name}.lock")
    return (
        f"log=$(mktemp) || exit 1; ( exec 8>{lock}; flock -w {_LONGEST} 8 || "
        f"{{ echo 'an earlier run still empties {name}, or lets it in'; exit 1; }}\n{_AWAIT}{script}) >$log 2>&1\n"
        "status=$?; cat $log >&2; rm -f $log; exit $status"
    )


def _offered(node: str, resource: str) -> str:
    """Shell: how much of a resource a node offers; no number if it never did."""
    return f"{_KUBECTL} get node {node} -o go-template='{{{{index .status.allocatable \"{resource}\"}}}}'"


def _uncordoned(node: str) -> str:
    """Shell: take our own cordon back."""
    free = {"metadata": {"annotations": {EMPTIED: None}}, "spec": {"unschedulable": None}}
    return (
        f"marks=$({_KUBECTL} get node {node} -o jsonpath='{{.metadata.annotations}}') || exit 1\n"
        f"case $marks in *{EMPTIED}*) {_KUBECTL} patch node {node} -p {shlex.quote(json.dumps(free))} ;; esac"
    )


@operation
def told(planes: Sequence[Endpoint], script: str, *, unless: str) -> Iterator[Command]:
    """A control plane runs a script that changes what the cluster knows of the current node.

    Args:
        planes: control planes, to ask one of.
        script: shell.
        unless: reading command for the current node: whether there is nothing to do.
    """
    if not host.get_fact(Probe, command=unless).ok:
        yield Elsewhere(planes, script, seconds=120)


@operation
def booted(*, seconds: int) -> Iterator[Command]:
    """The node has booted anew, within so many seconds."""
    yield Boot(seconds)


@operation
def let_in(
    name: str,
    planes: Sequence[Endpoint],
    *,
    label: str,
    value: str,
    resource: str,
    least: int,
    trial: Mapping[str, Any] | None = None,
) -> Iterator[Command]:
    """The node is ready and offers what it has; pods are sent there again, unless a person cordoned it.

    Args:
        name: of the node in the cluster.
        planes: control planes, to ask one of.
        label: key of the label that daemon sets wait for.
        value: its value. As long as the trial goes on it is `TRYING`, and stays so if that fails.
        resource: what the node must offer before pods come, such as nvidia.com/gpu.
        least: how many of it.
        trial: what is below `spec` of a pod that must end well on the node before others come.
    """
    node = shlex.quote(name)
    script = (
        f"{KUBECTL} wait --for=condition=Ready node/{node} --timeout={BOOT_SECONDS}s "
        f"&& {_KUBECTL} label node {node} {label}={TRYING if trial else value} --overwrite || exit 1\n"
        f'enough() {{ n=$({_offered(node, resource)}) && echo "$n" && [ "$n" -ge {least} ] 2>/dev/null; }}\n'
        f"await {OFFER_SECONDS} enough || {{\n"
        f"  {_KUBECTL} get pods -A --field-selector spec.nodeName={node} -o wide\n"
        f'  echo "{name} offers $(last) of {resource} and not {least}, {OFFER_SECONDS} s after its driver was there; '
        'it stays cordoned"; exit 1\n}\n'
        f"{_tried(name, trial) if trial else ''}"
        f"{_KUBECTL} label node {node} {label}={value} --overwrite || exit 1\n"
        f"{_uncordoned(node)}\n"
    )
    yield Elsewhere(planes, _unbroken(name, script), seconds=2 * _LONGEST)


def _tried(name: str, spec: Mapping[str, Any]) -> str:
    """Shell: a pod ends well on the node; whatever became of the one of an earlier run."""
    pod = _trial_pod(name)
    # It ends also where nobody is left who would delete it: then it keeps no drain waiting.
    ends = {"nodeName": name, "restartPolicy": "Never", "activeDeadlineSeconds": 2 * TRIAL_SECONDS}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod}, "spec": {**spec, **ends}}
    lines = '{range .items[*]}{.message}{"\\n"}{end}'
    return (
        f'kube() {{ {_KUBECTL} -n {_TRIAL_NAMESPACE} "$@"; }}\n'
        f"{_no_trial(name)} && printf %s {shlex.quote(json.dumps(manifest))} | kube create -f - || exit 1\n"
        f"ended() {{ p=$(kube get pod {pod} -o jsonpath={{.status.phase}}) && "
        'echo "$p" && case $p in Succeeded | Failed) ;; *) false ;; esac; }\n'
        f"await {TRIAL_SECONDS} ended; p=$(last)\n"
        '[ "$p" = Succeeded ] || {\n'
        f'  echo "a pod that tries what {name} offers does not run there ($p); the node stays cordoned:"\n'
        f"  kube get pod {pod} -o jsonpath='{{.status.message}}'; echo\n"
        f"  kube get events --field-selector type=Warning,involvedObject.name={pod} "
        f"-o jsonpath={shlex.quote(lines)} | tail -n 4\n"
        f'  [ "$p" = Failed ] && kube logs --tail=5 {pod}\n'
        f"  {_no_trial(name)}; exit 1\n"
        f"}}\n{_no_trial(name)}\n"
    )


def _no_trial(name: str) -> str:
    """Shell: no pod that tries the node is left."""
    return f"{_KUBECTL} -n {_TRIAL_NAMESPACE} delete pod {_trial_pod(name)} --ignore-not-found --now"


def _trial_pod(name: str) -> str:
    return shlex.quote(f"onprem-mlops-trial-{name}")
