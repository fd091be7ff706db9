"""The command lines that boot nodes, here and on a host with systemd; keepers; keys; what is recorded."""

from __future__ import annotations

import os
import stat
import subprocess
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from onprem_mlops.errors import RequestError
from onprem_mlops.lab import LabNode, LabSpec, ensure_keys, legacy, nspawn, record, ssh_command, unified
from onprem_mlops.lab.supervision import Container
from onprem_mlops.locks import is_locked, locked

SPEC = LabSpec.of("lab-ha", {"cp1": "10.77.1.11", "w1": "10.77.1.21"}, network="10.77.1.0/24")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of the test's own."""
    monkeypatch.setenv("MLOPS_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def container() -> Container:
    """The first node of the lab."""
    return Container(SPEC, SPEC.nodes[0])


def test_nspawn_boots_the_node_under_a_name_of_its_lab(container: Container) -> None:
    words = nspawn.command(SPEC, container.node, container.folders)
    assert words[:2] == ["systemd-nspawn", "--boot"]
    for word in (
        "--machine=lab-ha-cp1",
        "--hostname=cp1",
        "--network-bridge=br-lab-ha",
        "--register=no",
        "--keep-unit",
        "--capability=all",
        "--system-call-filter=add_key keyctl bpf @privileged",
        "--bind=/dev/kmsg",
    ):
        assert word in words
    assert f"--bind={container.folders.data}/var-lib-etcd:/var/lib/etcd" in words


def test_debian_13_is_told_to_boot_on_old_control_groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node = LabNode("cp1", IPv4Address("10.77.1.11"), "trixie")
    folders = Container(SPEC, node).folders
    monkeypatch.setattr(nspawn, "_UNIFIED", tmp_path / "absent")
    old = nspawn.command(SPEC, node, folders)
    assert old[-2:] == ["SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1", "systemd.unified_cgroup_hierarchy=0"]
    monkeypatch.setattr(nspawn, "_UNIFIED", tmp_path)
    assert nspawn.command(SPEC, node, folders) == old[:-2]


def test_systemd_runs_the_node_as_a_transient_unit_that_survives_reboots(container: Container) -> None:
    words = unified.start_command(container)
    own, separator, rest = words[: words.index("--")], words[words.index("--")], words[words.index("--") + 1 :]
    assert separator == "--"
    assert own[0] == "systemd-run"
    assert "--unit=mlops-lab-lab-ha-cp1.service" in own
    assert "--slice=mlopslab_lab_ha.slice" in own
    for setting in ("Delegate=yes", "KillMode=mixed", "RestartForceExitStatus=133", "SuccessExitStatus=133"):
        assert f"--property={setting}" in own
    assert not any("MemoryMax" in word for word in own)
    assert rest == nspawn.command(SPEC, container.node, container.folders)


def test_systemd_limits_a_node_s_memory() -> None:
    node = LabNode("cp1", IPv4Address("10.77.1.11"), memory_mib=2048)
    assert "--property=MemoryMax=2048M" in unified.start_command(Container(replace(SPEC, nodes=(node,)), node))


def test_the_slice_of_a_site_is_one_slice_not_nested_ones() -> None:
    assert unified.slice_name(SPEC).removesuffix(".slice").count("-") == 0


def _keep(container: Container, monkeypatch: pytest.MonkeyPatch, program: str, first: str) -> str:
    """Run a keeper over a shell program that stands for systemd-nspawn; returns how often it was started."""
    tally = container.folders.base / "tally"
    container.folders.base.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(legacy, "hierarchies", list)
    monkeypatch.setattr(nspawn, "command", lambda *_: ["sh", "-c", f"echo x >>{tally}; {program}"])
    script = legacy.keeper_script(container, first)
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False, timeout=20)
    return f"{tally.read_text().count('x') if tally.exists() else 0} starts, exit {done.returncode}"


def test_a_keeper_starts_a_node_again_when_it_reboots(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    tally = container.folders.base / "tally"
    program = f"[ $(wc -l <{tally}) -lt 3 ] && exit 133; exit 0"
    assert _keep(container, monkeypatch, program, "status=133") == "3 starts, exit 0"
    assert not is_locked(container.folders.keeper_lock)


def test_a_keeper_leaves_a_node_off_after_a_power_cut(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _keep(container, monkeypatch, "exit 1", "status=133") == "1 starts, exit 1"


def test_a_second_keeper_of_a_node_ends_at_once(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(container.folders.keeper_lock):
        assert _keep(container, monkeypatch, "exit 0", "status=133") == "0 starts, exit 0"


def test_keys_are_made_once_and_only_their_owner_reads_them() -> None:
    keys = ensure_keys(SPEC)
    assert ensure_keys(SPEC) == keys
    assert set(keys.host) == {"cp1", "w1"}
    assert all(line.startswith("ssh-ed25519 ") for line in [keys.user_public, *keys.host.values()])
    assert keys.host["cp1"] != keys.host["w1"]
    assert stat.S_IMODE(keys.user.stat().st_mode) == 0o600
    assert keys.known_hosts.read_text().splitlines()[0] == f"10.77.1.11 {keys.host['cp1']}"
    derived = subprocess.run(["ssh-keygen", "-y", "-f", keys.user], capture_output=True, text=True, check=True).stdout
    assert derived.split()[:2] == keys.user_public.split()[:2]


def test_keys_lie_where_the_site_file_looks_for_them(state: Path) -> None:
    from onprem_mlops.site import LabKeys

    made, looked_for = ensure_keys(SPEC), LabKeys(SPEC.site)
    assert looked_for.user_key == made.user
    found = looked_for.host_key("w1")
    assert found and found.split()[:2] == made.host["w1"].split()[:2]


def test_ssh_pins_the_host_key_and_ignores_one_s_own_configuration(container: Container) -> None:
    words = ssh_command(SPEC, container.node, "true")
    assert "StrictHostKeyChecking=yes" in words
    assert any(word.startswith("UserKnownHostsFile=") and "/lab/known_hosts" in word for word in words)
    assert words[words.index("-F") + 1] == "none"
    assert words[-2:] == ["mlops@10.77.1.11", "true"]


def test_a_lab_cannot_change_its_network_while_it_exists() -> None:
    record.check_and_write(SPEC)
    moved = LabSpec.of("lab-ha", {"cp1": "10.77.2.11"}, network="10.77.2.0/24")
    with pytest.raises(RequestError, match=r"was made with network 10\.77\.1\.0/24"):
        record.check_and_write(moved)


def test_nodes_that_left_the_site_file_are_still_known_to_the_lab() -> None:
    record.check_and_write(SPEC)
    fewer = replace(SPEC, nodes=SPEC.nodes[:1])
    record.check_and_write(fewer)
    assert [node.name for node in record.read(fewer).nodes] == ["cp1", "w1"]


def test_a_lock_is_no_lock_once_its_file_was_deleted(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path):
        assert is_locked(path)
        path.unlink()
        with locked(path):
            assert is_locked(path)
    assert not is_locked(path)


def test_only_root_brings_a_lab_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from onprem_mlops import lab

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(RequestError, match="needs root") as refused:
        lab.up(SPEC)
    assert "sudo" in refused.value.advice
