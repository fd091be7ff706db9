"""A change on trial, run by this machine's own shell: kept if it holds, taken back in every other case."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyinfra.context import ctx_host

from onprem_mlops.engine.facts import FileState
from onprem_mlops.engine.operation import Command
from onprem_mlops.engine.operations import guard, network
from onprem_mlops.engine.operations.guard import Reconnect, on_trial
from tests.roles.harness import FakeNode


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """systemd's tools as scripts: a timer is a file that is there while it is armed."""
    monkeypatch.setattr(guard, "FOLDER", str(tmp_path / "run"))
    monkeypatch.setattr(network, "_PREVIOUS", str(tmp_path / "previous"))
    tools = tmp_path / "bin"
    tools.mkdir()
    timer = tmp_path / "timer"
    scripts = {
        "systemd-run": f"touch {timer}",
        "systemctl": f'case "$*" in *is-active*) [ -e {timer} ];; stop*) rm -f {timer};; esac',
    }
    for name, text in scripts.items():
        script(tmp_path, name, text)
    return tmp_path


def commands(folder: Path, *, prepare: str = "", apply: str = "", keep: str = ":") -> list[Command]:
    """A trial of the text `new` in the file `rules`, which holds `old`."""
    rules, saved = folder / "rules", folder / "saved"
    return list(
        on_trial(
            "test",
            "this change",
            prepare=f"cp {rules} {saved}{prepare}",
            apply=apply or f"echo new >{rules}",
            undo=f"cp {saved} {rules}",
            holds=f"grep -q new {rules}",
            keep=keep,
        )
    )


def execute(command: Command, folder: Path) -> int:
    env = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    text = command.get_raw_value().replace(" /run/sshd ", f" {folder}/run ")
    stdin = str(command.connector_arguments.get("_stdin", ""))
    return subprocess.run(["sh", "-c", text], env=env, check=False, input=stdin, text=True).returncode


def script(folder: Path, name: str, text: str) -> None:
    (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / "bin" / name).chmod(0o755)


def test_a_change_that_holds_is_kept_and_its_timer_ends(tools: Path) -> None:
    (tools / "rules").write_text("old\n")
    arm, reconnect, keep = commands(tools)
    assert execute(arm, tools) == 0
    assert isinstance(reconnect, Reconnect)
    assert (tools / "timer").exists()
    assert execute(keep, tools) == 0
    assert (tools / "rules").read_text() == "new\n"
    assert not (tools / "timer").exists()


def test_a_change_that_fails_is_taken_back_at_once(tools: Path) -> None:
    (tools / "rules").write_text("old\n")
    arm, *_ = commands(tools, apply=f"echo half >{tools / 'rules'}; false")
    assert execute(arm, tools) == 1
    assert (tools / "rules").read_text() == "old\n"
    assert not (tools / "timer").exists()


def test_a_change_that_the_node_took_back_is_not_kept(tools: Path) -> None:
    (tools / "rules").write_text("old\n")
    arm, _, keep = commands(tools)
    execute(arm, tools)
    (tools / "rules").write_text("old\n")
    assert execute(keep, tools) == 1


def test_a_trial_that_an_earlier_run_left_behind_is_taken_back_first(tools: Path) -> None:
    (tools / "rules").write_text("old\n")
    arm, *_ = commands(tools)
    assert execute(arm, tools) == 0
    # That run died here: nobody proved its change, so it is not what a later failure may fall back to.
    arm, *_ = commands(tools, apply="false")
    assert execute(arm, tools) == 1
    assert (tools / "rules").read_text() == "old\n"


def test_a_change_that_could_not_be_prepared_whole_is_not_tried(tools: Path) -> None:
    (tools / "rules").write_text("old\n")
    arm, *_ = commands(tools, prepare=" && false && true")
    assert execute(arm, tools) == 1
    assert (tools / "rules").read_text() == "old\n"
    assert not (tools / "timer").exists()


def test_a_change_that_is_in_force_only_in_part_is_taken_back_in_the_end(tools: Path) -> None:
    (tools / "rules").write_text("old\n")
    arm, _, keep = commands(tools, apply=f": >{tools / 'rules'}")
    assert execute(arm, tools) == 0
    assert execute(keep, tools) == 1
    assert (tools / "rules").read_text() == "old\n"
    assert not (tools / "timer").exists()


def test_a_change_that_would_not_last_is_taken_back(tools: Path) -> None:
    (tools / "rules").write_text("old\n")
    arm, _, keep = commands(tools, keep="false && true")
    assert execute(arm, tools) == 0
    assert execute(keep, tools) == 1
    assert (tools / "rules").read_text() == "old\n"


@pytest.fixture
def sshd(tools: Path) -> Iterator[Path]:
    """The configuration file of an SSH server that notes its restarts in `restarts`; its folder is on no full disk."""
    script(tools, "sshd", f"grep -q broken {tools}/*.conf && exit 255; exit 0")
    script(
        tools,
        "systemctl",
        f'case "$*" in *is-active*timer) [ -e {tools}/timer ];; stop*timer) rm -f {tools}/timer;; '
        f"restart*) cat {tools}/*.conf >>{tools}/restarts;; esac",
    )
    (tools / "00.conf").write_text("ours, old\n")
    (tools / "10.conf").write_text("theirs\n")
    with ctx_host.use(FakeNode(probes={"is-active": 1}, states={f"{tools}/00.conf": FileState("file")})):
        yield tools


def sshd_commands(folder: Path, text: str | None) -> list[Command]:
    if text is None:
        return list(network.no_sshd.generator(f"{folder}/00.conf"))  # type: ignore[attr-defined]
    return list(network.sshd.generator(f"{folder}/00.conf", text))  # type: ignore[attr-defined]


def test_sshd_keeps_its_configuration_when_the_disk_is_full(sshd: Path) -> None:
    script(sshd, "base64", "echo 'write error: No space left on device' >&2; exit 1")
    arm, *_ = sshd_commands(sshd, "new\n")
    assert execute(arm, sshd) == 1
    assert (sshd / "00.conf").read_text() == "ours, old\n"
    assert not (sshd / "restarts").exists()


def test_sshd_is_not_restarted_with_what_it_would_refuse(sshd: Path) -> None:
    arm, *_ = sshd_commands(sshd, "broken\n")
    assert execute(arm, sshd) == 1
    assert (sshd / "restarts").read_text() == "ours, old\ntheirs\n", "restarted by the undoing alone"


def test_sshd_loses_our_configuration_on_trial_only(sshd: Path) -> None:
    arm, reconnect, keep = sshd_commands(sshd, None)
    assert execute(arm, sshd) == 0
    assert isinstance(reconnect, Reconnect)
    assert not (sshd / "00.conf").exists()
    assert (sshd / "timer").exists()
    assert execute(keep, sshd) == 0
    assert not (sshd / "timer").exists()


def test_sshd_keeps_our_configuration_if_it_would_not_start_without(sshd: Path) -> None:
    (sshd / "10.conf").write_text("broken\n")
    arm, *_ = sshd_commands(sshd, None)
    assert execute(arm, sshd) == 1
    assert (sshd / "00.conf").read_text() == "ours, old\n"
