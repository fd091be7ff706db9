"""The phase as a whole: what no role can show alone."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from onprem_mlops.artifacts import Store
from onprem_mlops.errors import MlopsError
from onprem_mlops.site import Hidden
from onprem_mlops.site.secrets import Secrets
from onprem_mlops.verify.suite import Cluster, NodeHost, Nodes, NotChecked, Site, namespace, until

START_SECONDS = 40


@pytest.fixture(scope="module")
def values(site: Site) -> dict[str, Hidden]:
    """Every secret of the site, by role and name."""
    try:
        shown = Secrets.of(site).show()
    except MlopsError as error:
        raise NotChecked(f"the site's secrets cannot be read here: {error.message}", error.advice) from None
    return {f"{role}/{name}": value for role, named in shown.items() for name, value in named.items()}


def _forms(value: Hidden) -> Iterator[str]:
    """A secret as it may stand in a file or on a command line: as it is, and in base64. One line each."""
    plain = value.reveal()
    lines = [line for line in plain.splitlines() if len(line) >= 16 and "-----" not in line]
    yield from lines[:1]
    yield base64.b64encode(plain.encode()).decode()


@pytest.mark.limit(120)
@pytest.mark.controls("CIS Kubernetes 1.2.28")
def test_secrets_are_nowhere_to_be_read(nodes: Nodes, values: dict[str, Hidden]) -> None:
    """No secret of the site stands in a file that everybody may read, on a command line or in the journal.

    `./mlops secrets rotate` makes a new one; a deploy lays it down. Then remove what shows the old one.
    """
    patterns = {form: name for name, value in values.items() for form in _forms(value)}
    assert patterns, "the site has no secrets"
    # A word of our own beside them: a search that does not find it would not find a secret either.
    control = "verify-control-" + base64.b32encode(bytes(range(10))).decode().lower()
    for name in nodes:
        found = _search(nodes[name], [*patterns, control], control)
        seen = {place.partition("/")[2].partition("/")[0] for word, place in found if word == control}
        assert seen == {"run", "proc"}, f"{name}: the search does not find what was put there for it, but only {seen}"
        leaked = {f"{patterns[form]} in {place}" for form, place in found if form != control}
        assert not leaked, f"{name}: {'; '.join(sorted(leaked))}"


_SEARCH = """
file=$(mktemp /run/verify.XXXXXX); words=$(mktemp /run/verify.XXXXXX); cat >$words
printf '%s\\n' "$1" >$file; chmod 644 $file; chmod 600 $words
find /etc /opt /srv /usr/local /var/log /var/lib/kubelet /tmp /run -xdev -type f -perm -o+r -size -2M \\
    ! -path '/srv/mirror/*' -print0 2>/dev/null | xargs -0 -r grep -IHoFf $words 2>/dev/null | sed 's/^/file /'
for process in /proc/[0-9]*; do
    tr '\\0' ' ' <$process/cmdline 2>/dev/null | grep -aoFf $words | sed "s|^|process $process:|"
done
journalctl -q -b -o cat --since=-1hour 2>/dev/null | grep -aoFf $words | sort -u | sed 's/^/file journal:/'
rm -f $file $words; true
"""


def _search(node: NodeHost, words: list[str], control: str) -> set[tuple[str, str]]:
    """Words that were found, each with its place. The words go over standard input; only the control is an argument."""
    said = node.feed(f"sh -c {_quoted(_SEARCH)} sh {control}", "\n".join(words), timeout=100)
    assert said.rc == 0, f"{node.name}: the search failed: {said.stderr.strip()[-300:]}"
    pairs = (line.partition(" ")[2].partition(":") for line in said.stdout.splitlines())
    return {(word, place) for place, _, word in pairs}


def _quoted(script: str) -> str:
    return "'" + script.replace("'", "'\\''") + "'"


def _deployment() -> dict[str, Any]:
    url = "https://kubernetes.default.svc/readyz"
    container = {
        "name": "work",
        "image": Store().image("image-netcheck"),
        "command": ["sh", "-c", f"until curl -skf --max-time 2 {url}; do sleep 0.2; done; exec sleep infinity"],
        # Ready only when the work was done: an image, a name, a Service and a route were there.
        "readinessProbe": {"exec": {"command": ["curl", "-skf", "--max-time", "2", url]}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
    }
    spec = {
        "containers": [container],
        "terminationGracePeriodSeconds": 0,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}},
    }
    template = {"metadata": {"labels": {"app": "work"}}, "spec": spec}
    selector = {"matchLabels": {"app": "work"}}
    return {"metadata": {"name": "work"}, "spec": {"replicas": 1, "selector": selector, "template": template}}


@pytest.mark.limit(90)
def test_a_workload_runs(site: Site, cluster: Cluster) -> None:
    """A workload that somebody deploys is placed on a worker, gets its image, and does its work."""
    with namespace(cluster, "platform") as name:
        path = f"/apis/apps/v1/namespaces/{name}/deployments"
        cluster.create(path, _deployment())

        def available() -> bool:
            return bool(cluster.get(f"{path}/work")["status"].get("availableReplicas"))

        done = until(available, START_SECONDS, every=0.3)
        pods = cluster.items(f"/api/v1/namespaces/{name}/pods")
        events = [
            one["message"] for one in cluster.items(f"/api/v1/namespaces/{name}/events") if one["type"] == "Warning"
        ]
        assert done, f"not at work after {START_SECONDS} s: {'; '.join(events[-3:]) or 'no pod was made'}"
        placed = {pod["spec"]["nodeName"] for pod in pods}
    workers = {node.name for node in site.in_group("worker")}
    assert placed <= workers, f"the pod was placed on {', '.join(placed)}, which is no worker"
