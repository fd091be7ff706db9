"""A deploy on real nodes: exact plans, empty second runs, and what it must survive."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onprem_mlops import lab
from onprem_mlops.paths import REPOSITORY, site_state
from tests.lab.cluster import under_fire
from tests.lab.sites import TestSite

pytestmark = pytest.mark.lab


def test_a_deploy_that_is_killed_again_and_again_ends_verified(site: TestSite, killed_at: list[str]) -> None:
    for name in under_fire.DANGEROUS:
        assert under_fire.among(killed_at, name), f"no kill inside {name}: {killed_at}"
    site.run("verify", "infrastructure").must()


def test_a_converged_site_has_an_empty_plan_and_deploys_nothing(site: TestSite, killed_at: list[str]) -> None:
    plan = site.json("plan", "infrastructure")
    assert plan["changed"] == 0
    assert {step["outcome"] for step in plan["steps"]} == {"done"}
    deploy = site.json("deploy", "infrastructure")
    assert (deploy["changed"], deploy["failed"], deploy["unreachable"]) == (0, [], {})


def test_a_deploy_does_exactly_what_the_plan_showed(site: TestSite, killed_at: list[str]) -> None:
    site.on("w1", "sysctl -w net.ipv4.ip_forward=0; rm /etc/crictl.yaml; systemctl stop containerd")
    site.on("b1", "chmod 600 /etc/sysctl.d/90-onprem-mlops.conf; echo '# drift' >>/etc/nftables.conf")
    plan = site.json("plan", "infrastructure")
    shown = sorted((step["step"], step["node"], name) for step in plan["steps"] for name in step["changed"])
    assert {node for _, node, _ in shown} == {"w1", "b1"}
    deploy = site.json("deploy", "infrastructure")
    done = sorted((step["step"], step["node"], name) for step in deploy["steps"] for name in step["changed"])
    assert done == shown
    assert site.json("plan", "infrastructure")["changed"] == 0


def test_dry_run_equals_plan(site: TestSite, killed_at: list[str]) -> None:
    site.on("b1", "chmod 600 /etc/sysctl.d/90-onprem-mlops.conf")
    plan, dry = site.json("plan", "infrastructure"), site.json("deploy", "infrastructure", "--dry-run")
    changed = [[step["changed"] for step in result["steps"] if step["changed"]] for result in (plan, dry)]
    assert changed[0] == changed[1] != []
    assert site.on("b1", "stat -c %a /etc/sysctl.d/90-onprem-mlops.conf") == "600"
    site.run("deploy", "infrastructure", "--node", "b1").must()


def test_two_deploys_at_once(site: TestSite, killed_at: list[str]) -> None:
    first = site.deploying()
    first.process.send_signal(signal.SIGSTOP)
    second = site.run("deploy", "infrastructure").must(2)
    assert f"(process {first.process.pid})" in second.output
    first.process.send_signal(signal.SIGCONT)
    first.wait().must()


def test_interrupting_says_how_to_go_on(site: TestSite, killed_at: list[str]) -> None:
    run = site.deploying()
    assert run.until(lambda event: event["kind"] == "step_started")
    stopped = run.signal(signal.SIGINT).must(3)
    assert "./mlops deploy" in stopped.output
    assert "Traceback" not in stopped.output


def test_an_unreachable_node_is_named_and_the_others_finish(site: TestSite, killed_at: list[str]) -> None:
    site.on("b1", "chmod 600 /etc/sysctl.d/90-onprem-mlops.conf")
    lab.power_cut(site.spec, "w1")
    try:
        result = site.json("deploy", "infrastructure", code=1)
        assert list(result["unreachable"]) == ["w1"]
        assert result["failed"] == []
        assert any(step["changed"] and step["node"] == "b1" for step in result["steps"])
        assert all(step["outcome"] == "done" for step in result["steps"] if step["node"] != "w1")
    finally:
        lab.start(site.spec, "w1")
    site.run("deploy", "infrastructure").must()


def test_a_wrong_host_key_is_refused_before_anything_is_touched(site: TestSite, killed_at: list[str]) -> None:
    public = site_state(site.name) / "ssh" / "host_keys" / "w1.pub"
    right = public.read_text()
    site.on("b1", "chmod 600 /etc/sysctl.d/90-onprem-mlops.conf")
    public.write_text((site_state(site.name) / "ssh" / "host_keys" / "b1.pub").read_text().replace("b1", "w1"))
    try:
        # Two nodes with the same key are an error of the site file, so b1 takes part in the swap.
        other = site_state(site.name) / "ssh" / "host_keys" / "b1.pub"
        kept = other.read_text()
        other.write_text(right.replace("w1", "b1"))
        refused = site.run("deploy", "infrastructure").must(2)
        other.write_text(kept)
    finally:
        public.write_text(right)
    assert "host key is not the pinned one; refused" in refused.output
    assert site.on("b1", "stat -c %a /etc/sysctl.d/90-onprem-mlops.conf") == "600"
    site.run("deploy", "infrastructure", "--node", "b1").must()


LISTED = "find /etc/containerd -type f -exec sha256sum {} + | sort"


def test_a_full_disk_names_the_node_and_leaves_nothing_half_written(site: TestSite, killed_at: list[str]) -> None:
    site.on("w1", "cp -a /etc/containerd /root/kept && mount -t tmpfs -o size=64k full /etc/containerd")
    try:
        site.on("w1", "cp -a /root/kept/. /etc/containerd/; echo '# drift' >>/etc/containerd/config.toml")
        site.on("w1", "dd if=/dev/zero of=/etc/containerd/filler bs=1k count=64 2>/dev/null", check=False)
        before = site.on("w1", LISTED)
        failed = site.run("deploy", "infrastructure", "--node", "w1").must(1)
        assert "No space left on device" in failed.output
        assert "on w1" in failed.output
        assert "Traceback" not in failed.output
        assert site.on("w1", LISTED) == before
    finally:
        site.on("w1", "umount /etc/containerd; rm -rf /root/kept")
    site.run("deploy", "infrastructure", "--node", "w1").must()


def test_a_file_corrupted_on_its_way_is_refused(site: TestSite, killed_at: list[str]) -> None:
    binary = "/usr/local/bin/crictl"
    served = site.on("s1", "find /srv /var/lib -path '*files/crictl/*' -name crictl -type f | head -1")
    site.on(
        "s1", f"cp -a {served} /root/kept-crictl && printf X | dd of={served} bs=1 seek=4096 conv=notrunc 2>/dev/null"
    )
    site.on("w1", f"rm {binary}")
    try:
        failed = site.run("deploy", "infrastructure", "--node", "w1").must(1)
        assert "not the file that the catalogue pins" in failed.output
        assert site.on("w1", f"ls {binary}* 2>/dev/null | wc -l") == "0"
    finally:
        site.on("s1", f"cat /root/kept-crictl >{served}")
    site.run("deploy", "infrastructure", "--node", "w1").must()
    assert site.on("w1", f"{binary} --version")


BOOT = "cat /proc/sys/kernel/random/boot_id"


def test_a_node_that_reboots_during_a_step(site: TestSite, killed_at: list[str]) -> None:
    boot = site.on("w1", BOOT)
    site.on("w1", "rm /usr/local/bin/kubelet")
    # Slow enough for the boot to meet the step: an answer takes two thirds of a second.
    lab.netem(site.spec, "w1", delay_ms=300, loss_percent=0)
    try:
        run = site.deploying()
        assert run.until(lambda event: event["kind"] == "operation_started" and event["node"] == "w1")
        lab.reboot(site.spec, "w1")
        ended = run.wait().must(1)
        assert "w1" in ended.output
        assert "Traceback" not in ended.output
    finally:
        lab.clear_netem(site.spec, "w1")
    assert site.on("w1", BOOT) != boot
    site.run("deploy", "infrastructure").must()
    site.run("verify", "infrastructure").must()


def test_a_slow_and_lossy_network(site: TestSite, killed_at: list[str]) -> None:
    for node in site.spec.nodes:
        lab.netem(site.spec, node.name, delay_ms=50, loss_percent=5)
    try:
        site.on("w1", "rm -f /usr/local/bin/crictl")
        result = site.json("deploy", "infrastructure")
        assert result["changed"] >= 1
    finally:
        for node in site.spec.nodes:
            lab.clear_netem(site.spec, node.name)
    site.run("verify", "infrastructure").must()


def test_rules_that_lock_the_controller_out_take_themselves_back(site: TestSite, killed_at: list[str]) -> None:
    # A process of its own: the engine needs gevent's patches from the first line on.
    script = Path(__file__).with_name("lock_out.py")
    done = subprocess.run(
        [sys.executable, str(script), str(site.folder)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert "would lock the controller out and was taken back" in said["w1"]
    assert "would lock the controller out and takes itself back within 60 s" in said["b1"]
    end = time.monotonic() + 60
    while site.run("status").code != 0:
        assert time.monotonic() < end, "b1 did not take it back"
    for node in ("w1", "b1"):
        assert site.on(node, "nft list table inet locks_out 2>/dev/null | wc -l; ls /etc/nftables.d") == "0\nonprem.nft"


def test_plain_pyinfra_lays_down_the_same(site: TestSite, killed_at: list[str]) -> None:
    site.on("b1", "chmod 600 /etc/sysctl.d/90-onprem-mlops.conf")
    pyinfra = REPOSITORY / ".venv" / "bin" / "pyinfra"
    done = subprocess.run(
        [str(pyinfra), "-y", str(site.folder / "inventory.py"), str(REPOSITORY / "deploys" / "infrastructure.py")],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert site.on("b1", "stat -c %a /etc/sysctl.d/90-onprem-mlops.conf") == "644"
    assert site.json("plan", "infrastructure")["changed"] == 0


def test_no_secret_is_in_the_logs_of_the_runs(site: TestSite, killed_at: list[str]) -> None:
    value = site.run("secrets", "show", "kubernetes", "encryption_key").must().output.strip()
    assert len(value) >= 32
    logs = "".join(path.read_text() for path in Path(site_state(site.name), "runs").rglob("run.jsonl"))
    assert value not in logs
    assert "PRIVATE KEY" not in logs
