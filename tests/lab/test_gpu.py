"""GPU nodes: real drivers, kernels, modules and everything in the cluster; SIMULATED cards.

Modules that an earlier run of these tests built are handed to the site as a like node's would be: building them takes
minutes. On a machine without any they are built here. The order matters: the site begins with the older driver.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from onprem_mlops import lab
from onprem_mlops.paths import cache_dir, site_state
from tests.lab.sites import CLUSTER, HANGS_SECONDS, Done, TestSite, made

pytestmark = pytest.mark.lab

OLD = {"driver": "535.261.03", "kernel": "6.1.0-50-amd64"}
KERNEL_ONLY = {"driver": "535.261.03", "kernel": "6.1.0-56-amd64"}
NEW = {"driver": "535.309.01", "kernel": "6.1.0-56-amd64"}
"""The point release of Debian 12 and its security updates, as the catalogue's archive has both."""

FEW_MODULES = """\
MAKE[0]="env NV_EXCLUDE_KERNEL_MODULES='nvidia-uvm nvidia-drm nvidia-modeset' \\
    make -j2 modules KERNEL_UNAME=${kernelver}"
BUILT_MODULE_NAME[1]=nvidia-peermem
BUILT_MODULE_NAME[2]=nvidia-peermem
BUILT_MODULE_NAME[3]=nvidia-peermem
BUILT_MODULE_NAME[4]=nvidia-peermem
"""
"""DKMS: build the first of the driver's modules, and the smallest in the place of the others. The whole driver is built
for the first pins; for the others that would be five minutes more each, for modules that nothing here can load."""

LEFT_FILES = r"""
find /etc /usr/local /opt /run/cdi -xdev -regex '.*/\([^/]*gpu\|[^/]*nouveau\|nvidia-ctk\|nvidia-cdi\)[^/]*'
ls -d /var/lib/onprem-gpu 2>/dev/null
"""
LEFT_OBJECTS = (
    "daemonsets,deployments,pods,serviceaccounts,networkpolicies,resourcequotas,roles,rolebindings,clusterroles,"
    "clusterrolebindings,customresourcedefinitions,validatingadmissionpolicies,validatingadmissionpolicybindings"
)

HOLD_APT = (
    "import fcntl, time; held = open('/var/lib/dpkg/lock-frontend', 'w'); fcntl.lockf(held, fcntl.LOCK_EX); "
    "time.sleep(900)"
)
"""Python: keeps apt waiting."""

BUILT = cache_dir() / "lab-modules"
"""Modules of earlier runs."""

DRIVER = "Kernel module and libraries of the driver are both of the pinned version"
KERNEL = "The node runs the kernel that the driver was built for, and its headers are there"
NEXT_BOOT = "The kernel that boots next has the driver's module, whatever other kernels are there"
HELD = "Kernel and driver are held together: no upgrade changes one without the other"
NOUVEAU = "The free driver nouveau is not loaded and never will be"
SERVED = "The driver is loaded at boot, its metrics are served, and somebody looks whether all cards answer"
TOLD = "What containers are told of the cards (CDI) is what the driver says today"
ANSWER = "All cards of the site file answer, with the names and the memory that they should have"


def archive(pins: dict[str, str]) -> str:
    return f"{pins['driver']}-{pins['kernel']}.tar.gz"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestSite]:
    """The lab with GPU nodes, laid down with the older driver."""
    folder, roles = tmp_path_factory.mktemp("site"), (*CLUSTER, "gpu")
    with made("lab-gpu", "t-gpu", folder, roles=roles, without=("b1",), booted=False) as site:
        pin(site, **OLD)
        kept = site_state(site.name) / "gpu"
        kept.mkdir(parents=True)
        for pins in (OLD, NEW):
            if (BUILT / archive(pins)).exists():
                shutil.copy(BUILT / archive(pins), kept)
        site.run("lab", "up", "--nodes-only").must()
        for node in ("g1", "g2"):
            # Nothing here boots from an initial ramdisk: one without modules is made in a tenth of the time.
            site.on(node, "mkdir -p /etc/initramfs-tools/conf.d; echo MODULES=list >/etc/initramfs-tools/conf.d/small")
        site.run("deploy", "infrastructure", timeout=3 * HANGS_SECONDS).must()
        for node in ("g1", "g2"):
            site.on(node, f"cat >/etc/dkms/nvidia-current.conf <<'END'\n{FEW_MODULES}END")
        try:
            yield site
        finally:
            BUILT.mkdir(parents=True, exist_ok=True)
            for one in kept.iterdir():
                shutil.copy(one, BUILT)


def pin(site: TestSite, **settings: Any) -> None:
    """Give settings.gpu these values; None takes one away."""
    yaml = YAML()
    yaml.width = 4096
    file = site.folder / "site.yaml"
    written = yaml.load(file)
    for key, value in settings.items():
        if value is None:
            written["settings"]["gpu"].pop(key, None)
        else:
            written["settings"]["gpu"][key] = value
    yaml.dump(written, file)


def deploy(site: TestSite) -> Done:
    return site.run("deploy", "--role", "gpu")


def failures(site: TestSite, code: int = 1) -> set[tuple[str, str]]:
    """Node and sentence of the role's checks that do not hold."""
    found = site.json("verify", "--role", "gpu", code=code)
    return {(one["node"], one["name"]) for one in found["checks"] if one["outcome"] == "failed"}


def node_of(site: TestSite, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(site.kubectl("get", "node", name, "-o", "json"))
    return found


def cordoned(site: TestSite) -> dict[str, bool]:
    return {name: bool(node_of(site, name)["spec"].get("unschedulable")) for name in ("g1", "g2")}


def loaded(site: TestSite, node: str) -> str:
    """Kernel and driver that the node's last boot made of its packages."""
    return site.on(node, "cat /run/onprem-gpu/kernel; cut -f2 /run/onprem-gpu/simulated | head -n 1", check=False)


def boot(site: TestSite, node: str) -> str:
    return site.on(node, "cat /proc/sys/kernel/random/boot_id")


def root(site: TestSite, node: str) -> Path:
    """A node's disk, as this machine sees it."""
    return site_state(site.name) / "lab" / "nodes" / node / "root"


def is_at(site: TestSite, pins: dict[str, str], *nodes: str) -> None:
    for node in nodes or ("g1", "g2"):
        assert loaded(site, node).split() == [pins["kernel"], pins["driver"]], node


def job(site: TestSite, name: str, gpus: int = 1) -> None:
    """A deployment of team vision whose pod holds GPUs."""
    resources = {"limits": {"nvidia.com/gpu": str(gpus), "memory": "64Mi"}, "requests": {"cpu": "10m"}}
    container = {
        "name": "job",
        "image": "onprem.local/netcheck:1",
        "resources": resources,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = {
        "containers": [container],
        "terminationGracePeriodSeconds": 0,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}},
    }
    labels = {"app": name}
    manifest = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "vision"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }
    path = site.folder / "job.json"
    path.write_text(json.dumps(manifest))
    site.kubectl("apply", "-f", str(path))
    site.kubectl("-n", "vision", "rollout", "status", f"deployment/{name}", "--timeout=90s")


def place_of(site: TestSite, name: str) -> str:
    return site.kubectl("-n", "vision", "get", "pods", "-l", f"app={name}", "-o", "jsonpath={.items[*].spec.nodeName}")


def test_everything_holds_and_says_that_cards_are_simulated(site: TestSite) -> None:
    found = site.json("verify", "infrastructure")
    said = [one["message"] for one in found["checks"] if one["name"] in (DRIVER, ANSWER)]
    assert len(said) == 4, said
    assert all("SIMULATED" in one for one in said), said
    is_at(site, OLD)


def test_a_second_deploy_changes_nothing(site: TestSite) -> None:
    second = site.json("deploy", "infrastructure")
    assert second["changed"] == 0, [step for step in second["steps"] if step["changed"]]


def test_a_node_that_starts_no_containers_is_named(site: TestSite) -> None:
    """Its cards are all right: that is not what the checks complain about."""
    site.on("g1", "systemctl stop containerd")
    try:
        site.kubectl("wait", "--for=condition=Ready=False", "node/g1", "--timeout=150s")
        found = site.json("verify", "--role", "gpu", code=2)["checks"]
        assert "failed" not in {one["outcome"] for one in found}
        why = [one["message"] for one in found if one["outcome"] == "not_checked"]
        assert len(why) == 2 and all(one.startswith("node g1 is not ready: ") for one in why), why
    finally:
        site.run("deploy", "infrastructure").must()
    site.kubectl("wait", "--for=condition=Ready", "node/g1", "--timeout=60s")


def test_a_wrong_pin_is_refused_and_nothing_touched(site: TestSite) -> None:
    before = boot(site, "g1")
    for wrong in ({"driver": "535.999.99"}, {"kernel": "6.1.0-99-amd64"}):
        pin(site, **wrong)
        said = deploy(site).must(2).output
        assert next(iter(wrong.values())) in said, said
        assert "Nothing was changed" in said, said
        pin(site, **OLD)
    is_at(site, OLD)
    assert boot(site, "g1") == before


def test_missing_headers_are_found_and_cured(site: TestSite) -> None:
    """With them goes what else a person may have undone without a boot."""
    site.on("g1", f"apt-get -q -y --allow-change-held-packages purge linux-headers-{OLD['kernel']}")
    # One of these files is ours, one is of Debian's driver.
    site.on("g2", "apt-mark unhold libcuda1; rm /etc/modprobe.d/*nouveau.conf")
    site.on("g2", "systemctl stop onprem-gpu-exporter")
    assert {("g1", KERNEL), ("g2", HELD), ("g2", NOUVEAU), ("g2", SERVED)} <= failures(site)
    before = boot(site, "g1")
    deploy(site).must()
    assert not failures(site, 0)
    assert boot(site, "g1") == before, "headers need no reboot"


def test_libraries_of_another_version_are_named_and_cured_without_a_boot(site: TestSite) -> None:
    exact = "535.309.01-0+deb12u1"
    names = ("libcuda1", "libnvidia-ml1", "libnvidia-ptxjitcompiler1", "nvidia-alternative", "nvidia-smi")
    wanted = " ".join(f"{name}={exact}" for name in names)
    site.on(
        "g2",
        f"apt-get -q -y --allow-change-held-packages -o Dpkg::Options::=--force-depends install {wanted} || "
        f"(cd /tmp && apt-get -q download {wanted} && dpkg --force-all -i *.deb)",
    )
    found = failures(site)
    assert ("g2", DRIVER) in found, found
    assert ("g2", ANSWER) in found, found
    before = boot(site, "g2")
    deploy(site).must()
    assert not failures(site, 0)
    assert boot(site, "g2") == before, "only the libraries differed"
    is_at(site, OLD)


def test_a_kernel_that_slipped_in_is_named_and_cured(site: TestSite) -> None:
    """A person installs a newer kernel, and it is booted: there is no driver for it."""
    site.on("g1", f"rm /etc/default/grub.d/90-onprem-gpu.cfg; apt-get -q -y install linux-image-{NEW['kernel']}")
    site.on("g1", "echo '# changed' >>/run/cdi/k8s.device-plugin.nvidia.com-gpu.yaml")
    assert {("g1", NEXT_BOOT), ("g1", TOLD)} <= failures(site)
    lab.power_cut(site.spec, "g1")
    lab.start(site.spec, "g1")
    found = failures(site)
    assert {("g1", KERNEL), ("g1", DRIVER), ("g1", NEXT_BOOT)} <= found, found
    deploy(site).must()
    is_at(site, OLD)
    assert not failures(site, 0)


def condition(site: TestSite, node: str) -> dict[str, str]:
    """What the cluster knows of the node's cards."""
    conditions = {one["type"]: one for one in node_of(site, node)["status"]["conditions"]}
    found: dict[str, str] = conditions["GpusHealthy"]
    return found


def test_a_lost_card_and_a_hung_driver_take_their_nodes_out_until_they_are_back(site: TestSite) -> None:
    """Jobs on the other cards go on meanwhile, whatever is deployed."""
    job(site, "unharmed")
    pod = uid_of(site, "unharmed")
    try:
        site.on("g1", "touch /run/onprem-gpu/lost-0")
        site.on("g2", "touch /run/onprem-gpu/hung")
        end = time.monotonic() + 150
        while {condition(site, node)["status"] for node in ("g1", "g2")} != {"False"}:
            assert time.monotonic() < end, (condition(site, "g1"), condition(site, "g2"))
            time.sleep(2)
        assert cordoned(site) == {"g1": True, "g2": True}
        assert "card 0" in condition(site, "g1")["message"]
        assert "does not answer within" in condition(site, "g2")["message"]
        assert "CardSilent" in site.kubectl("get", "events", "-n", "default")
        for node in ("g1", "g2"):
            assert "is cordoned" in site.on(node, "journalctl -p alert -u onprem-gpu-watch --no-pager")
        # What names cards does not run where one is lost. It asks but once a minute, so it is made to ask now.
        namer = ("-n", "kube-system", "-l", "app=gpu-feature-discovery", "--field-selector=spec.nodeName=g1")
        site.kubectl("delete", "pods", *namer, "--wait")
        site.on("g2", "rm /run/onprem-gpu/hung")
        assert ("g1", ANSWER) in failures(site)
        said = " ".join(deploy(site).must(1).output.replace("│", " ").split())
        assert "g1 stays cordoned: card 0" in said, said
        assert cordoned(site) == {"g1": True, "g2": False}, "one node's card keeps no other one out"
    finally:
        for node in ("g1", "g2"):
            site.on(node, "rm -f /run/onprem-gpu/lost-0 /run/onprem-gpu/hung")
        deploy(site).must()
    assert cordoned(site) == {"g1": False, "g2": False}
    assert uid_of(site, "unharmed") == pod, "the job on the other card had nothing to do with it"
    assert not failures(site, 0)
    site.kubectl("-n", "vision", "delete", "deployment", "unharmed", "--wait")


def uid_of(site: TestSite, name: str) -> str:
    return site.kubectl("-n", "vision", "get", "pods", "-l", f"app={name}", "-o", "jsonpath={.items[*].metadata.uid}")


def test_a_failed_build_leaves_its_node_as_it_was_and_others_go_on(site: TestSite) -> None:
    """g1 comes first and has no compiler; g2 built its modules before, if an earlier run of this test did."""
    if (BUILT / archive(KERNEL_ONLY)).exists():
        shutil.copy(BUILT / archive(KERNEL_ONLY), root(site, "g2") / "var/lib/onprem-gpu/modules")
    job(site, "stays")
    site.on("g1", "dpkg-divert --rename --quiet /usr/bin/x86_64-linux-gnu-gcc-12")
    site.on("g2", f'systemd-run -q --unit hold-apt python3 -c "{HOLD_APT}"')
    pin(site, **KERNEL_ONLY)
    running = site.deploying("--role", "gpu")
    assert running.until(lambda event: _is(event, "step_done", "gpu.prepare", "g1"))
    # From here on g2 is slow: g1 is the first to build.
    lab.netem(site.spec, "g2", delay_ms=500, loss_percent=0)
    site.on("g2", "systemctl stop hold-apt")
    assert running.until(lambda event: _is(event, "step_done", "gpu.modules", "g1"))
    lab.clear_netem(site.spec, "g2")
    said = running.wait().must(1).output
    assert "g1" in said, said
    assert f"the modules of driver {KERNEL_ONLY['driver']} do not build" in said, said
    is_at(site, OLD, "g1")
    is_at(site, KERNEL_ONLY, "g2")
    assert cordoned(site) == {"g1": False, "g2": False}


def _is(event: dict[str, Any], kind: str, step: str, node: str) -> bool:
    return {"kind": kind, "step": step, "node": node}.items() <= event.items()


def test_the_rest_follows_once_it_is_mended_and_work_moves(site: TestSite) -> None:
    """The modules that g2 built are handed to g1; g1's pod moves before g1 boots."""
    site.on("g1", "dpkg-divert --remove --rename --quiet /usr/bin/x86_64-linux-gnu-gcc-12")
    assert place_of(site, "stays") == "g1", "g2 was emptied, and g1 was not"
    deploy(site).must()
    assert place_of(site, "stays") == "g2", "it had to leave g1"
    is_at(site, KERNEL_ONLY)
    assert cordoned(site) == {"g1": False, "g2": False}
    site.kubectl("-n", "vision", "rollout", "status", "deployment/stays", "--timeout=90s")
    assert not failures(site, 0)


def test_a_node_that_its_pods_may_not_leave_stays_as_it_is(site: TestSite) -> None:
    """A budget forbids it: the run stops, and the node is let in again."""
    boots = {node: boot(site, node) for node in ("g1", "g2")}
    budget = ("poddisruptionbudget", "stays", "-n", "vision")
    site.kubectl("create", *budget, "--selector=app=stays", "--max-unavailable=0")
    where = place_of(site, "stays")
    try:
        pin(site, **OLD, drain_minutes=1)
        said = " ".join(site.run("deploy", "--role", "gpu", "--node", where).must(1).output.replace("│", " ").split())
        assert f"{where} stays as it is" in said, said
        assert "disruption budget" in said, said
        assert cordoned(site) == {"g1": False, "g2": False}
        assert place_of(site, "stays") == where
        assert {node: boot(site, node) for node in ("g1", "g2")} == boots
    finally:
        site.kubectl("delete", *budget)
        pin(site, **KERNEL_ONLY, drain_minutes=None)


def test_a_deploy_that_dies_with_a_node_emptied_is_finished_by_the_next(site: TestSite) -> None:
    """Also the way back: to the kernel before."""
    pin(site, **OLD)
    running = site.deploying("--role", "gpu")
    assert running.until(lambda event: event.get("operation") == "no pod works on the node")
    running.process.kill()
    running.wait()
    deploy(site).must()
    is_at(site, OLD)
    assert cordoned(site) == {"g1": False, "g2": False}


def test_a_node_that_does_not_come_back_stops_the_run(site: TestSite) -> None:
    """The first node boots and nobody can reach it: the second stays as it is."""
    site.on("g1", "systemctl disable -q ssh.service; systemctl mask -q ssh.socket")
    pin(site, **NEW, boot_minutes=2)
    others = boot(site, "g2")
    try:
        said = " ".join(deploy(site).must(1).output.split())
        assert "g1 was told to boot and is not back after 120 s" in said, said
        assert "gpu.driver on g2" in said.partition("not run:")[2], said
        # Nor does the next run take the next node, as if the first had never been there.
        said = " ".join(deploy(site).must(1).output.replace("│", " ").split())
        assert "g2 stays as it is: g1 was emptied by an earlier deploy" in said, said
        assert cordoned(site) == {"g1": True, "g2": False}
        is_at(site, OLD, "g2")
        assert boot(site, "g2") == others
    finally:
        wants = root(site, "g1") / "etc/systemd/system/multi-user.target.wants/ssh.service"
        wants.symlink_to("/lib/systemd/system/ssh.service")
        lab.power_cut(site.spec, "g1")
        lab.start(site.spec, "g1")
    deploy(site).must()
    is_at(site, NEW)
    assert cordoned(site) == {"g1": False, "g2": False}
    pin(site, boot_minutes=None)


def test_another_driver_for_the_kernel_that_runs_needs_no_boot(site: TestSite) -> None:
    """And a person's cordon stays."""
    boots = {node: boot(site, node) for node in ("g1", "g2")}
    site.kubectl("cordon", "g2")
    pin(site, **KERNEL_ONLY)
    deploy(site).must()
    is_at(site, KERNEL_ONLY)
    assert cordoned(site) == {"g1": False, "g2": True}
    site.kubectl("uncordon", "g2")
    # Containers that begin now are given the new driver's libraries.
    site.kubectl("-n", "vision", "rollout", "status", "deployment/stays", "--timeout=90s")
    assert {node: boot(site, node) for node in ("g1", "g2")} == boots
    pin(site, **NEW)
    deploy(site).must()
    is_at(site, NEW)
    assert not failures(site, 0)


def test_cards_are_shared_by_turns(site: TestSite) -> None:
    """Whoever has a whole card leaves before it is shared, node by node; not where no container would get a share."""
    pod = uid_of(site, "stays")
    pin(site, shared_by=2)
    others = "/run/cdi/of-another-tool.yaml"
    site.on("g1", f"cp /run/cdi/k8s.device-plugin.nvidia.com-gpu.yaml {others}")
    said = " ".join(deploy(site).must(1).output.replace("│", " ").split())
    tried = r"a pod that tries what g1 offers does not run there \(\w+\); the node stays cordoned"
    assert re.search(tried, said), said
    assert "CDI" in said, said
    assert cordoned(site) == {"g1": True, "g2": False}
    site.on("g1", f"rm {others}")
    deploy(site).must()
    assert cordoned(site) == {"g1": False, "g2": False}
    assert not failures(site, 0)
    assert node_of(site, "g1")["status"]["allocatable"]["nvidia.com/gpu"] == "4"
    assert uid_of(site, "stays") != pod
    pin(site, shared_by=None)
    deploy(site).must()
    assert not failures(site, 0)


def test_removed_it_leaves_the_kernel_and_nothing_else(site: TestSite) -> None:
    """Not the rules before the nodes; from one node, whose pods move; then from all."""
    remove = ("remove", "--role", "gpu", "--yes-destroy", site.name)
    assert "g1, g2 still offer GPUs" in site.run(*remove, "--node", "cp1").must(1).output
    where = place_of(site, "stays")
    other = {"g1": "g2", "g2": "g1"}[where]
    site.run(*remove, "--node", where).must()
    site.kubectl("-n", "vision", "rollout", "status", "deployment/stays", "--timeout=90s")
    assert place_of(site, "stays") == other
    assert node_of(site, where)["status"]["allocatable"].get("nvidia.com/gpu", "0") == "0"
    site.run(*remove).must()
    for node in ("g1", "g2"):
        assert site.on(
            node, "dpkg-query -W -f '${db:Status-Abbrev}\\n' 'nvidia-*' 2>/dev/null | grep -c ^i", check=False
        ) in ("", "0")
        assert not site.on(node, LEFT_FILES, check=False)
        assert not site.on(node, "ls /dev/nvidia* 2>/dev/null", check=False)
        assert site.on(node, f"ls /boot/vmlinuz-{NEW['kernel']}")
        of_cluster = node_of(site, node)
        taints = [one["key"] for one in of_cluster["spec"].get("taints", ())]
        names = (*of_cluster["metadata"]["labels"], *of_cluster["metadata"]["annotations"], *taints)
        assert not [name for name in names if "nvidia.com" in name or "nfd.node" in name], names
        assert "GpusHealthy" not in {one["type"] for one in of_cluster["status"]["conditions"]}
        assert cordoned(site)[node] is False
    left = site.kubectl("get", LEFT_OBJECTS, "-A", "-o", "name")
    assert not re.search("nvidia|nfd|gpu", left), left
