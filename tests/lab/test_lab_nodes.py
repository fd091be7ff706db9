"""A real lab of two nodes: booted, rebooted, cut off, taken up again, and gone without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from onprem_mlops import lab, paths
from onprem_mlops.errors import RequestError
from onprem_mlops.lab.host import Pid, command_line, mounts
from onprem_mlops.lab.lab import choose_supervision
from onprem_mlops.lab.legacy import LegacySupervision, hierarchies
from onprem_mlops.lab.supervision import Container

pytestmark = pytest.mark.lab

SITE = f"t-lab-{os.getpid()}"
SUBNET = f"10.77.{230 + os.getpid() % 20}"
SPEC = lab.LabSpec.of(
    SITE, {"a1": f"{SUBNET}.11", "b1": f"{SUBNET}.12"}, network=f"{SUBNET}.0/24", bridge=f"brt{os.getpid()}"
)


PROBE_GROUPS = "cd /sys/fs/cgroup; [ ! -d memory ] || cd memory; sudo mkdir probe && sudo rmdir probe"
"""Makes a control group, of whichever version."""


def traces() -> dict[str, list[str]]:
    """All that a lab of this site could leave on this machine."""
    folders = [*hierarchies(), Path("/run/systemd/nspawn"), paths.state_dir()]
    found = subprocess.run(
        ["find", *folders, "-maxdepth", "3", "-name", f"*{SITE}*"], capture_output=True, text=True, check=False
    ).stdout.split()
    processes = [Pid(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return {
        "folders and control groups": found,
        "mounts": [str(mount.target) for mount in mounts() if SITE in str(mount.target)],
        "links": [
            link.name for link in Path("/sys/class/net").iterdir() if SITE in link.name or link.name == SPEC.bridge
        ],
        "routes": [line for line in subprocess.getoutput("ip -4 route show table all").splitlines() if SUBNET in line],
        "processes": [" ".join(words) for pid in processes if SITE in " ".join(words := command_line(pid))],
        "firewall": [line for line in subprocess.getoutput("nft list ruleset").splitlines() if SUBNET in line],
    }


@pytest.fixture(scope="module", autouse=True)
def nodes() -> Iterator[None]:
    """The lab, up for the tests of this file and gone after them, whatever happens."""
    before = traces()
    assert not any(before.values()), before
    forwarding = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    try:
        lab.up(SPEC)
        yield
    finally:
        lab.destroy(SPEC)
    time.sleep(1)
    assert traces() == before
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == forwarding


@pytest.fixture(autouse=True)
def all_up(nodes: None) -> None:
    """Each test begins with all nodes up."""
    lab.up(SPEC)


def said(node: str, *remote: str) -> str:
    """What a command on a node prints."""
    command = lab.ssh_command(SPEC, SPEC.node(node), *remote)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{node}: {' '.join(remote)}: exit {done.returncode}: {done.stderr}"
    return done.stdout.strip()


def row(node: str) -> lab.NodeStatus:
    """A node's line of the status."""
    return next(one for one in lab.status(SPEC) if one.node == node)


def test_nodes_are_what_a_real_site_has() -> None:
    assert said("a1", "hostname") == "a1"
    assert said("a1", "sudo -n id -u") == "0"
    assert said("a1", "systemctl is-system-running") == "running"
    assert "VERSION_CODENAME=bookworm" in said("a1", "cat /etc/os-release")
    assert said("a1", "cat /etc/machine-id") != said("b1", "cat /etc/machine-id")
    assert f"{SUBNET}.11/24" in said("a1", "ip -brief address show host0")
    assert said("a1", f"ping -c 1 -W 2 {SUBNET}.12 >/dev/null && echo reached") == "reached"


def test_what_kubernetes_needs_is_writable() -> None:
    said("a1", PROBE_GROUPS)
    said("a1", "sudo sysctl -w net.ipv4.ip_forward=1")
    for folder in SPEC.data_folders:
        assert said("a1", f"stat -f -c %T {folder}") not in ("overlayfs", "tmpfs")
    assert said("a1", "stat -f -c %T /sys/fs/bpf") == "bpf_fs"
    assert said("a1", "test -c /dev/kmsg && echo there") == "there"


def test_nodes_reach_nothing_outside() -> None:
    outside = subprocess.run(
        lab.ssh_command(SPEC, SPEC.node("a1"), "ping -c 1 -W 1 1.1.1.1"), capture_output=True, check=False
    )
    assert outside.returncode != 0


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_only_the_ssh_user_gets_in(user: str) -> None:
    command = [word.replace(f"{SPEC.user}@", f"{user}@") for word in lab.ssh_command(SPEC, SPEC.node("a1"), "true")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 255
    assert "Permission denied" in done.stderr


def test_a_wrong_host_key_is_refused(tmp_path: Path) -> None:
    keys = lab.ensure_keys(SPEC)
    wrong = tmp_path / "known_hosts"
    wrong.write_text(f"{SPEC.node('a1').address} {keys.host['b1']}\n")
    command = [
        f"UserKnownHostsFile={wrong}" if word.startswith("UserKnownHostsFile=") else word
        for word in lab.ssh_command(SPEC, SPEC.node("a1"), "true")
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr


def test_a_reboot_changes_the_boot_id_and_nothing_else() -> None:
    before, other = row("a1"), row("b1")
    key = said("a1", "cat /etc/ssh/ssh_host_ed25519_key.pub")
    after = lab.reboot(SPEC, "a1")
    assert after.boot_id != before.boot_id
    assert after.boot_id == said("a1", "cat /proc/sys/kernel/random/boot_id")
    assert said("a1", "cat /etc/ssh/ssh_host_ed25519_key.pub") == key
    said("a1", PROBE_GROUPS)
    assert row("b1").boot_id == other.boot_id


def test_a_node_can_reboot_itself() -> None:
    before = row("b1").boot_id
    subprocess.run(lab.ssh_command(SPEC, SPEC.node("b1"), "sudo reboot"), capture_output=True, check=False)
    deadline = time.monotonic() + 60
    while row("b1").boot_id in (before, None) and time.monotonic() < deadline:
        time.sleep(0.2)
    lab.up(SPEC)
    assert row("b1").boot_id not in (before, None)
    assert said("b1", "hostname") == "b1"


def test_a_power_cut_leaves_the_node_off_until_it_is_started() -> None:
    said("a1", "sudo touch /var/lib/before-the-cut")
    lab.power_cut(SPEC, "a1")
    assert row("a1").state == "off"
    assert row("b1").state == "running"
    with pytest.raises(RequestError, match="a1 is not running"):
        lab.power_cut(SPEC, "a1")
    assert lab.start(SPEC, "a1").state == "running"
    said("a1", "test -e /var/lib/before-the-cut")


def test_down_keeps_disks_and_up_resumes_them() -> None:
    said("a1", "echo kept | sudo tee /etc/kept /var/lib/etcd/kept")
    lab.down(SPEC)
    assert {one.state for one in lab.status(SPEC)} == {"off"}
    left = traces()
    assert not any(left[what] for what in left if what != "folders and control groups"), left
    assert all(str(paths.state_dir()) in path for path in left["folders and control groups"]), left
    lab.up(SPEC)
    assert said("a1", "cat /etc/kept /var/lib/etcd/kept") == "kept\nkept"


def test_two_ups_at_once_are_harmless() -> None:
    lab.power_cut(SPEC, "a1")
    rows: list[tuple[lab.NodeStatus, ...]] = []
    both = [threading.Thread(target=lambda: rows.append(lab.up(SPEC))) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(rows) == 2
    assert [one.boot_id for one in rows[0]] == [one.boot_id for one in rows[1]]


def test_up_is_quick_when_all_is_up() -> None:
    boots = [one.boot_id for one in lab.status(SPEC)]
    began = time.monotonic()
    assert [one.boot_id for one in lab.up(SPEC)] == boots
    assert time.monotonic() - began < 5


def _processes(mark: str) -> list[Pid]:
    """Processes of this machine whose command line has the mark."""
    everyone = [Pid(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in everyone if mark in " ".join(command_line(pid))]


legacy_only = pytest.mark.skipif(
    not isinstance(choose_supervision(), LegacySupervision), reason="keepers are systemd's own here"
)


@legacy_only
def test_a_lost_keeper_is_replaced_without_a_reboot() -> None:
    before = row("a1")
    for pid in _processes(f"{SITE}/lab/nodes/a1/keeper.sh"):
        os.kill(pid, signal.SIGKILL)
    assert not row("a1").supervised
    lab.up(SPEC)
    assert row("a1").supervised
    assert row("a1").boot_id == before.boot_id
    assert lab.reboot(SPEC, "a1").boot_id != before.boot_id
    assert row("a1").supervised


@legacy_only
def test_a_lost_launcher_is_mended_by_up() -> None:
    for pid in _processes(f"--machine={SITE}-b1"):
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    assert row("b1").state == "running"
    lab.up(SPEC)
    assert row("b1").supervised
    assert said("b1", "hostname") == "b1"


@legacy_only
def test_what_a_killed_machine_leaves_is_no_obstacle() -> None:
    """Processes, mounts, control groups and bridge gone in any combination: up makes them again."""
    supervision = choose_supervision()
    for pid in _processes(f"{SITE}/lab/nodes/a1/keeper.sh") + _processes(f"--machine={SITE}-a1"):
        os.kill(pid, signal.SIGKILL)
    for pid in supervision.processes(Container(SPEC, SPEC.node("a1"))):
        os.kill(pid, signal.SIGKILL)
    subprocess.run(["ip", "link", "delete", SPEC.bridge], check=True)
    lab.up(SPEC)
    assert said("a1", "hostname") == "a1"
    assert said("b1", f"ping -c 1 -W 2 {SUBNET}.11 >/dev/null && echo reached") == "reached"


def test_nodes_left_off_a_new_bridge_are_put_on_it() -> None:
    """As an `up` leaves them that was ended right after it made the bridge."""
    boot = row("b1").boot_id
    subprocess.run(["ip", "link", "delete", SPEC.bridge], check=True)
    subprocess.run(["ip", "link", "add", SPEC.bridge, "type", "bridge"], check=True)
    lab.up(SPEC)
    assert said("b1", f"ping -c 1 -W 2 {SUBNET}.11 >/dev/null && echo reached") == "reached"
    assert row("b1").boot_id == boot


def test_a_bad_network_is_slow_and_lossy_until_it_is_cleared() -> None:
    lab.netem(SPEC, "a1", delay_ms=50, loss_percent=5)
    slow = said("b1", f"ping -q -c 100 -i 0.02 -W 2 {SUBNET}.11 || true")
    lab.clear_netem(SPEC, "a1")
    fast = said("b1", f"ping -q -c 10 -i 0.05 {SUBNET}.11")
    assert 50 <= _average_ms(slow) < 100
    assert _average_ms(fast) < 20
    assert " 0% packet loss" in fast


def test_a_deaf_node_hears_again() -> None:
    lab.netem(SPEC, "a1", delay_ms=0, loss_percent=100)
    deaf = subprocess.run(
        lab.ssh_command(SPEC, SPEC.node("b1"), f"ping -q -c 3 -i 0.1 -W 1 {SUBNET}.11"),
        capture_output=True,
        check=False,
    )
    lab.clear_netem(SPEC, "a1")
    assert deaf.returncode != 0
    assert said("a1", "hostname") == "a1"


def test_debian_13_boots_and_reboots() -> None:
    """systemd 257 takes control groups of version 1 only when forced, which the lab does where it must."""
    network = f"10.77.{250 + os.getpid() % 5}"
    newer = lab.LabSpec.of(f"{SITE}-13", {"d1": f"{network}.11"}, network=f"{network}.0/24", release="trixie")
    newer = replace(newer, bridge=f"{SPEC.bridge}d")
    try:
        (before,) = lab.up(newer)
        release = subprocess.run(
            lab.ssh_command(newer, newer.nodes[0], "cat /etc/debian_version"),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert release.startswith("13")
        after = lab.reboot(newer, "d1")
        assert after.boot_id != before.boot_id
    finally:
        lab.destroy(newer)


def _average_ms(ping: str) -> float:
    return float(ping.rpartition("= ")[2].split("/")[1])
