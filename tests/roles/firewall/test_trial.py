"""A change on trial, run by this machine's own shell: kept if it holds, taken back in every other case."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from onprem_mlops.engine.operation import Command
from onprem_mlops.engine.operations import guard
from onprem_mlops.engine.operations.guard import Reconnect, on_trial


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """systemd's tools as scripts: a timer is a file that is there while it is armed."""
    monkeypatch.setattr(guard, "FOLDER", str(tmp_path / "run"))
    tools = tmp_path / "bin"
    tools.mkdir()
    timer = tmp_path / "timer"
    scripts = {
        "systemd-run": f"touch {timer}",
        "systemctl": f'case "$*" in *is-active*) [ -e {timer} ];; stop*) rm -f {timer};; esac',
    }
    for name, script in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    return tmp_path


def commands(folder: Path, *, apply: str = "") -> list[Command]:
    """A trial of the text `new` in the file `rules`, which holds `old`."""
    rules, saved = folder / "rules", folder / "saved"
    return list(
        on_trial(
            "test",
            "this change",
            prepare=f"cp {rules} {saved}",
            apply=apply or f"echo new >{rules}",
            undo=f"cp {saved} {rules}",
            holds=f"grep -q new {rules}",
        )
    )


def execute(command: Command, folder: Path) -> int:
    env = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    return subprocess.run(["sh", "-c", command.get_raw_value()], env=env, check=False).returncode


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
