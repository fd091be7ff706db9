"""What the cluster makes of the cards: who gets one, who does not, and what a pod sees of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from onprem_mlops.artifacts import Store
from onprem_mlops.verify.suite import Cluster, Node, NotChecked, Site, namespace, until
from roles.gpu.settings import Settings

START_SECONDS = 60
BUSY_SECONDS = 10
BUSY = "Insufficient nvidia.com/gpu"
"""What the scheduler says of the chosen node, and of it only: taints are those of others."""
SEEN = "ls -d /dev/nvidia[0-9]* 2>/dev/null | wc -l; nvidia-smi -L 2>/dev/null; echo end"


@dataclass(frozen=True)
class Place:
    """A namespace for pods of these checks. It is the platform's, by its label: the rules of GPUs do not hold there."""

    cluster: Cluster
    name: str

    @property
    def pods(self) -> str:
        return f"/api/v1/namespaces/{self.name}/pods"

    def phase(self, pod: str) -> str:
        return str(self.cluster.get(f"{self.pods}/{pod}")["status"].get("phase", ""))

    def why(self, pod: str) -> str:
        status = self.cluster.get(f"{self.pods}/{pod}")["status"]
        waiting = [
            one.get("state", {}).get("waiting", {}).get("message", "") for one in status.get("containerStatuses", ())
        ]
        said = [*(one.get("message", "") for one in status.get("conditions", ())), *waiting, status.get("message", "")]
        return "; ".join(dict.fromkeys(one for one in said if one))

    def unready(self, pod: str) -> str:
        """Why the node that a pod is for runs none; empty if it does, or if any node will do."""
        spec = self.cluster.get(f"{self.pods}/{pod}")["spec"]
        name = spec.get("nodeName") or spec.get("nodeSelector", {}).get("kubernetes.io/hostname")
        conditions = self.cluster.get(f"/api/v1/nodes/{name}")["status"]["conditions"] if name else ()
        said = [one.get("message", "") for one in conditions if one["type"] == "Ready" and one["status"] != "True"]
        return "".join(f"node {name} is not ready: {one}" for one in said)


def pod(name: str, *, gpus: int | None = None, node: str = "", on: str = "", tolerates: bool = False) -> dict[str, Any]:
    """A pod without any privilege.

    Args:
        name: its name.
        gpus: how many it names as its limit; None: it does not speak of GPUs.
        node: the node that it is sent to past the scheduler.
        on: the node that the scheduler is to choose.
        tolerates: whether it tolerates the taint of GPU nodes by its own word.
    """
    limits = {"memory": "64Mi"} | ({} if gpus is None else {"nvidia.com/gpu": str(gpus)})
    container = {
        "name": "look",
        "image": Store().image("image-netcheck"),
        "command": ["sleep", "600"],
        # What would make NVIDIA's own container runtime hand out all cards.
        "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": limits},
    }
    spec: dict[str, Any] = {
        "containers": [container],
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}},
    }
    if node:
        spec["nodeName"] = node
    if on:
        spec["nodeSelector"] = {"kubernetes.io/hostname": on}
    if tolerates:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


class AllInUse(NotChecked):
    """Other people's work has the cards: no fault of the platform."""


@pytest.fixture(scope="module")
def place(cluster: Cluster) -> Iterator[Place]:
    """A namespace of its own."""
    with namespace(cluster, "gpu") as name:
        accounts = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        assert until(lambda: cluster.request("GET", accounts).status == 200, 20), f"namespace {name} has no account"
        yield Place(cluster, name)


@pytest.fixture
def started(place: Place) -> Iterator[Callable[[dict[str, Any]], str]]:
    """Start a pod and wait until it runs; it goes with the check."""
    names: list[str] = []

    def start(manifest: dict[str, Any]) -> str:
        name = str(manifest["metadata"]["name"])
        names.append(name)
        place.cluster.create(place.pods, manifest)

        def is_settled() -> bool:
            return place.phase(name) in ("Running", "Failed")

        def is_hopeless() -> bool:
            return BUSY in place.why(name) or bool(place.unready(name))

        # What a check before this one gave back may take a moment to be known.
        if not until(is_settled, BUSY_SECONDS, 0.5):
            until(lambda: is_settled() or is_hopeless(), START_SECONDS - BUSY_SECONDS, 0.5)
        if place.phase(name) != "Running":
            why = place.why(name)
            if BUSY in why:
                raise AllInUse(f"all GPUs are in use: {why}", "Verify again once one is free.")
            if unready := place.unready(name):
                raise NotChecked(unready, "`./mlops deploy infrastructure` lays down again what the node lacks.")
            raise AssertionError(f"pod {name} does not run after {START_SECONDS} s: {why}")
        return name

    yield start
    for name in names:
        place.cluster.delete(f"{place.pods}/{name}")
    for name in names:
        until(lambda name=name: place.cluster.request("GET", f"{place.pods}/{name}").status == 404, 30)  # type: ignore[misc]


def one_of_each(cluster: Cluster, site: Site, settings: Settings) -> list[Node]:
    """A node with each kind of cards, of those that pods are sent to."""

    def is_open(node: Node) -> bool:
        return not cluster.get(f"/api/v1/nodes/{node.name}")["spec"].get("unschedulable")

    kinds = {tuple(gpu.model for gpu in node.facts.gpus): node for node in settings.nodes(site) if is_open(node)}
    if not kinds:
        raise NotChecked("all GPU nodes are cordoned", "Verify again once one is let in.")
    return list(kinds.values())


def refusal(cluster: Cluster, manifest: dict[str, Any], where: str = "default") -> str:
    """What the API server says to a pod in a namespace; empty if it would take it. None is made."""
    answer = cluster.request("POST", f"/api/v1/namespaces/{where}/pods?dryRun=All", manifest)
    return "" if answer.status in (200, 201) else answer.text


def test_offered(
    cluster: Cluster, site: Site, settings: Settings, record_property: Callable[[str, object], None]
) -> None:
    """Every GPU node offers as many GPUs as it has, times those who share one."""
    found = []
    for node in settings.nodes(site):
        status = cluster.get(f"/api/v1/nodes/{node.name}")["status"]
        offered = int(status["allocatable"].get(settings.resource, 0))
        wanted = settings.offered(node)
        right = offered >= wanted if settings.mig else offered == wanted
        assert right, f"{node.name} offers {offered} {settings.resource}, not {wanted}"
        found.append(f"{node.name} {offered}{' (SIMULATED)' if settings.simulated(node) else ''}")
    record_property("found", ", ".join(found))


def test_named(cluster: Cluster, site: Site, settings: Settings) -> None:
    """Feature discovery names each node's cards, and says of simulated ones that they are."""
    for node in settings.nodes(site):
        labels = cluster.get(f"/api/v1/nodes/{node.name}")["metadata"]["labels"]
        product = labels.get("nvidia.com/gpu.product", "")
        models = [gpu.model for gpu in node.facts.gpus]
        assert any(model in product for model in models), (
            f"{node.name} is labelled {product or 'nothing'}, not {models}"
        )
        assert ("SIMULATED" in product) is settings.simulated(node), f"{node.name} is labelled {product}"
        for key in ("nvidia.com/gpu.memory", "nvidia.com/gpu.count", "nvidia.com/cuda.driver-version.full"):
            assert key in labels, f"{node.name} has no label {key}"


def test_parts_run(cluster: Cluster, site: Site, settings: Settings) -> None:
    """Device plugin and feature discovery run on every GPU node, and do not begin again and again."""
    pods = cluster.items("/api/v1/namespaces/kube-system/pods")
    for node in settings.nodes(site):
        here = {
            one["metadata"].get("labels", {}).get("app"): one
            for one in pods
            if one["spec"].get("nodeName") == node.name
        }
        for app in ("nvidia-device-plugin", "gpu-feature-discovery"):
            assert app in here, f"{node.name}: no pod of {app}"
            states = here[app]["status"].get("containerStatuses", ())
            wrong = [one for one in states if not one["ready"] or (one["restartCount"] > 5 and _ended_lately(one))]
            assert not wrong, f"{node.name}: {app} is not ready, or began {wrong[0]['restartCount']} times anew"


def _ended_lately(status: Mapping[str, Any]) -> bool:
    """Whether a container ended within the last hour: each boot of its node counts as a new beginning, too."""
    ended = status.get("lastState", {}).get("terminated", {}).get("finishedAt")
    return bool(ended) and datetime.now(UTC) - datetime.fromisoformat(ended) < timedelta(hours=1)


@pytest.mark.limit(300)
def test_pod_sees_what_it_asked_for(
    place: Place,
    started: Callable[[dict[str, Any]], str],
    site: Site,
    settings: Settings,
    record_property: Callable[[str, object], None],
) -> None:
    """A pod that asks for one GPU sees exactly one; where cards are real, NVML in the pod says so."""
    busy: list[AllInUse] = []
    seen: list[str] = []
    for node in one_of_each(place.cluster, site, settings):
        try:
            name = started(pod(f"one-{node.name}", gpus=1, on=node.name))
        except AllInUse as all_in_use:
            busy.append(all_in_use)
            continue
        said = place.cluster.exec(place.name, name, "bash", "-c", SEEN).stdout.split("\n")
        assert said[0] == "1", f"a pod that asked for one GPU sees {said[0]} on {node.name}"
        if not settings.simulated(node):
            named = [line for line in said if line.startswith("GPU ")]
            assert len(named) == 1, f"nvidia-smi in a pod on {node.name} that asked for one GPU shows {named}"
        seen.append(node.name)
    if not seen:
        raise busy[0]
    record_property("found", f"asked on {', '.join(seen)}{f'; {len(busy)} busy' if busy else ''}")


@pytest.mark.limit(150)
def test_pod_sees_none_unasked(
    place: Place, started: Callable[[dict[str, Any]], str], site: Site, settings: Settings
) -> None:
    """A pod without privileges that asks for no GPU sees none, whatever it writes into its environment."""
    for node in one_of_each(place.cluster, site, settings):
        name = started(pod(f"none-{node.name}", node=node.name))
        said = place.cluster.exec(place.name, name, "bash", "-c", "ls -d /dev/nvidia* /driver-root 2>/dev/null | wc -l")
        assert said.stdout.strip() == "0", f"a pod that asked for no GPU sees devices of {node.name}"


def test_others_stay_away(place: Place, site: Site, settings: Settings) -> None:
    """The scheduler sends no pod to a GPU node that asks for no GPU."""
    node, *_ = one_of_each(place.cluster, site, settings)
    place.cluster.create(place.pods, pod("other", on=node.name))
    try:
        assert until(lambda: "untolerated taint" in place.why("other"), 30), (
            f"a pod without GPU that wants {node.name} is {place.phase('other')}: {place.why('other')}"
        )
    finally:
        place.cluster.delete(f"{place.pods}/other")


def test_quotas(cluster: Cluster, settings: Settings) -> None:
    """Teams have the quotas of the site file, and nobody else may hold a GPU."""
    found = {
        one["metadata"]["namespace"]: one["spec"]["hard"].get(f"requests.{settings.resource}")
        for one in cluster.items("/api/v1/resourcequotas?labelSelector=onprem-mlops.local/role=gpu")
    }
    wanted = {name: str(number) for name, number in settings.quotas.items()}
    assert found == wanted, f"quotas are {found}, not {wanted}"
    if "default" not in settings.quotas:
        said = refusal(cluster, pod("other", gpus=1))
        assert "may hold no GPU" in said, f"namespace default may hold a GPU: {said or 'its pod is taken'}"


def test_quota_holds(cluster: Cluster, settings: Settings) -> None:
    """A team's pod that asks for more than its quota is refused."""
    for name, number in settings.quotas.items():
        manifest = pod("much", gpus=number + 1)
        answer = cluster.request("POST", f"/api/v1/namespaces/{name}/pods?dryRun=All", manifest)
        assert answer.status == 403, f"namespace {name}: a pod with {number + 1} GPUs is taken (HTTP {answer.status})"


def test_only_gpu_work(cluster: Cluster) -> None:
    """A pod that tolerates the taint of GPU nodes and asks for no GPU is refused."""
    said = refusal(cluster, pod("sly", tolerates=True))
    assert "asks for no GPU" in said, f"it is taken: {said or 'HTTP 201'}"


def test_past_the_scheduler(cluster: Cluster, site: Site, settings: Settings) -> None:
    """A pod that names a GPU node itself, past scheduler and taint, and asks for no GPU is refused."""
    for node in settings.nodes(site):
        said = refusal(cluster, pod("sly", node=node.name))
        assert "asks for no GPU" in said, f"for {node.name} it is taken: {said or 'HTTP 201'}"


def test_none_is_not_asking(cluster: Cluster) -> None:
    """A pod with a limit of 0 GPUs, to which the API server gives the toleration all the same, is refused."""
    said = refusal(cluster, pod("sly", gpus=0))
    assert "asks for no GPU" in said, f"it is taken: {said or 'HTTP 201'}"


def test_privileged_pods_are_refused(cluster: Cluster, settings: Settings) -> None:
    """Namespace default and those of teams take no privileged pod, which would see all cards of its node."""
    manifest = pod("privileged")
    manifest["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    for name in ("default", *settings.quotas):
        said = refusal(cluster, manifest, name)
        assert "PodSecurity" in said, f"namespace {name} takes privileged pods: {said or 'HTTP 201'}"
