"""What all commands have in common: `--json`, tables that nothing is cut from, and an interruption told once."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from docs.generate import commands
from onprem_mlops import tiers
from onprem_mlops.artifacts.blobs import Blobs
from onprem_mlops.artifacts.commands import MirrorBuild
from onprem_mlops.artifacts.manifest import StoredFile
from onprem_mlops.cli import run
from onprem_mlops.cli.handing_over import hand_over
from onprem_mlops.cli.options import in_inventories
from onprem_mlops.cli.result import PRIVATE, Result, write_json, writes
from onprem_mlops.console import print_table
from onprem_mlops.errors import MlopsError
from onprem_mlops.paths import REPOSITORY
from onprem_mlops.site.role import find_roles

DESCRIBED = (REPOSITORY / "docs/reference/json.md").read_text()
COMMANDS = commands()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_writes_a_documented_result(name: str) -> None:
    command = COMMANDS[name]
    flags = [flag for one in command.params for flag in one.opts]
    assert "--json" in flags, f"./mlops {name} has no --json: give its function @writes(SCHEMA)"
    written_by = {
        schema: row.rpartition("](")[2]
        for row in re.findall(r"^\| \[`.*$", DESCRIBED, re.MULTILINE)
        for schema in re.findall(r"`([\w-]+/v\d+)`", row)
    }
    for schema in command.callback.schemas:
        assert f"`{name}`" in written_by.get(schema, ""), f"json.md does not say that {name} writes {schema}"


def _app(**of_result: Any) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @writes("one/v1", "two/v1")
    def command(word: str = "none") -> Result:
        typer.echo("ran")
        return Result({"word": word}, **of_result)

    return app


def test_a_result_is_written_under_its_schema(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    assert _app(exit_code=1)(["--word", "this", "--json", str(file)], standalone_mode=False) == 1
    assert json.loads(file.read_text()) == {"schema": "onprem-mlops/one/v1", "word": "this"}
    _app(schema="two/v1")(["--json", str(file)], standalone_mode=False)
    assert json.loads(file.read_text())["schema"] == "onprem-mlops/two/v1"


def test_an_error_is_told_once_the_result_is_written(tmp_path: Path) -> None:
    with pytest.raises(MlopsError, match="this"):
        _app(error=MlopsError("this"))(["--json", str(tmp_path / "result.json")], standalone_mode=False)
    assert (tmp_path / "result.json").exists()


def test_nothing_is_done_whose_result_could_not_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path, tmp_path / "absent" / "result.json"):
        with pytest.raises(MlopsError, match="cannot write"):
            _app()(["--json", str(path)], standalone_mode=False)
    assert capsys.readouterr().out == ""


def test_the_mode_of_a_result(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for mode, expected in ((None, 0o640), (PRIVATE, 0o600)):
            file = tmp_path / f"{mode}.json"
            file.write_text("older, and readable by all")
            file.chmod(0o666)
            write_json(file, "one/v1", {}, mode)
            assert file.stat().st_mode & 0o777 == expected
    finally:
        os.umask(before)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_pipe_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True) as reader:
        write_json(pipe, "one/v1", {"word": "this"})
        assert json.loads(reader.communicate(timeout=10)[0])["word"] == "this"
    assert pipe.is_fifo()


# What a person may get wrong


def test_a_value_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["mirror", "build", "--source", "foo"]) == 2
    assert "'auto', 'url', 'go'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["MLOPS_CACHE", "MLOPS_STATE"])
def test_a_folder_that_is_none(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(name, str(tmp_path / "file"))
    assert run(["mirror", "list"] if name == "MLOPS_CACHE" else ["lab", "up", "--nodes-only"]) == 2
    assert f"Check {name} ({tmp_path / 'file'})" in " ".join(capsys.readouterr().err.split())


def test_a_defect_of_ours_is_no_wrong_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLOPS_STATE", str(tmp_path))
    monkeypatch.setattr("onprem_mlops.artifacts.commands.mirror_list", lambda: (tmp_path / "absent").read_text())
    assert run(["mirror", "list"]) == 1
    assert "a defect of onprem-mlops itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("role", "settings", "message"),
    [
        ("kubernetes", {"eviction_hard": {"memory.free": "5%"}}, "memory.available"),
        ("kubernetes", {"eviction_hard": {"memory.available": "a lot"}}, "pattern"),
        ("containerd", {"registries": ["http://quay.io/"]}, "pattern"),
    ],
)
def test_settings_that_no_node_could_run_with(role: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        find_roles()[role].settings.model_validate(settings)


@pytest.mark.parametrize("command", ["plan", "deploy", "verify"])
def test_a_lab_that_was_never_made(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLOPS_STATE", str(tmp_path))
    assert run([command]) == 2
    assert "Make the lab first: ./mlops lab up" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_the_site_that_is_meant_lies_in_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert in_inventories("lab") == REPOSITORY / "inventories/lab"
    monkeypatch.chdir(REPOSITORY)
    assert in_inventories("lab") == Path("inventories/lab")


# mirror


def test_all_that_a_site_lays_down_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def build(names: list[str], **_: Any) -> MirrorBuild:
        asked.append(names)
        return MirrorBuild(store="", seconds=0, made=(), freed=0, artifacts=())

    monkeypatch.setattr("onprem_mlops.artifacts.commands.mirror_build", build)
    site = tmp_path / "site.yaml"
    site.write_text((REPOSITORY / "inventories/lab-gpu/site.yaml").read_text())
    assert run(["mirror", "build", "-i", str(tmp_path)]) == 0
    text = site.read_text().replace("settings:\n", "settings:\n  mirror: {debian: [bookworm, trixie]}\n", 1)
    site.write_text(text)
    assert run(["mirror", "build", "crane", "-i", str(tmp_path)]) == 0
    first, second = asked
    assert {"debs-gpu-bookworm", "image-nvidia-device-plugin", "debs-bookworm", "kubernetes"} <= set(first)
    assert "gitea" not in first, "that site has no Gitea"
    assert set(second) - set(first) == {"crane", "debs-trixie"}


# remove


def test_who_removes_a_role_is_told_what_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLOPS_STATE", str(tmp_path))
    assert run(["remove", "--role", "containerd", "--yes-destroy", "another-site"]) == 2
    assert "these roles lose what they need: kubernetes." in " ".join(capsys.readouterr().out.split())
    assert run(["remove", "--role", "network", "--yes-destroy", "another-site"]) == 2
    assert "lose what they need" not in capsys.readouterr().out


# Commands that run a program


def test_a_stream_that_is_open_already_goes_on(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from onprem_mlops.cli.result import write_json; "
        "print('before', flush=True); write_json(Path('/dev/stdout'), 'test/v1', {}); print('after')"
    )
    log = tmp_path / "log"
    with log.open("w") as stream:
        subprocess.run([sys.executable, "-c", script], stdout=stream, check=True)
    assert log.read_text().startswith("before\n{")
    assert log.read_text().endswith("}\nafter\n")


LIST = [sys.executable, "-m", "onprem_mlops", "mirror", "list"]


def test_a_command_goes_on_when_nobody_reads_it(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as unread:
        done = subprocess.run([*LIST, "--json", result], stdout=unread, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(result.read_text())["artifacts"]


def test_no_room_for_what_is_printed_is_no_defect() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(LIST, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr and "defect" not in done.stderr


def test_a_program_keeps_its_exit_code() -> None:
    def program(line: str) -> Result:
        return hand_over([line], lambda: subprocess.run(["sh", "-c", line], check=False).returncode)

    ran = program("exit 7")
    assert (ran.exit_code, ran.data["command"], ran.data["exit_code"]) == (7, ["exit 7"], 7)
    assert program("kill -9 $$").exit_code == 137
    # Ctrl-C reaches both; the program answers it, and we do not.
    assert program("trap 'exit 5' INT; kill -INT $PPID; kill -INT $$").exit_code == 5
    assert signal.getsignal(signal.SIGINT) is not None


def test_kubectl_is_run_as_it_lies_in_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\n[ "$KUBECONFIG $*" = "$MLOPS_STATE/sites/lab/kubeconfig get nodes" ] && exit 7\n')
    program.chmod(0o755)
    blobs = Blobs(tmp_path / "store")
    digest, size = blobs.add(program)
    stored = StoredFile(name="kubectl", sha256=digest, size=size, path=blobs.path(digest))
    monkeypatch.setattr("onprem_mlops.artifacts.Store.file", lambda *arguments: stored)
    monkeypatch.setenv("MLOPS_STATE", str(tmp_path))
    (tmp_path / "sites/lab").mkdir(parents=True)
    (tmp_path / "sites/lab/kubeconfig").touch()
    file = tmp_path / "result.json"
    assert run(["kubectl", "--json", str(file), "--", "get", "nodes"]) == 7
    assert json.loads(file.read_text())["command"] == ["kubectl", "get", "nodes"]


@pytest.mark.parametrize("module", ["status", "cli.own_commands", "endpoint", "verify.session"])
def test_who_only_looks_at_a_site_loads_no_pyinfra(module: str) -> None:
    script = f"import sys, onprem_mlops.{module}; sys.exit('pyinfra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_figures_of_a_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/_measure.py").write_text((REPOSITORY / "bench/_measure.py").read_text())
    (tmp_path / "bench/this.py").write_text(
        "import sys\nfrom bench._measure import figure\n"
        "figure('size', '3 MB', 'at most 2 MB', False)\nsys.exit(len(sys.argv))\n"
    )
    monkeypatch.setattr("onprem_mlops.cli.own_commands.REPOSITORY", tmp_path)
    file = tmp_path / "result.json"
    assert run(["bench", "this", "--json", str(file), "--", "--often", "--json"]) == 3
    result = json.loads(file.read_text())
    assert result["command"] == ["this", "--often", "--json"]
    assert result["figures"] == [{"name": "size", "value": "3 MB", "limit": "at most 2 MB", "held": False}]


def test_the_counts_of_the_tiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = tiers.Tier("one", "this", ((sys.executable, "-c", ""),))
    two = tiers.Tier("two", "that", ((sys.executable, "-c", "raise SystemExit(1)"),))
    monkeypatch.setattr(tiers, "TIERS", (one, two, tiers.Tier("three", "the rest", ())))
    assert run(["test", "--without", "three", "--json", str(tmp_path / "result.json")]) == 1
    result = json.loads((tmp_path / "result.json").read_text())
    assert [(tier["tier"], tier["passed"], tier["failed"]) for tier in result["tiers"]] == [
        ("one", 1, 0),
        ("two", 0, 1),
    ]
    assert result["left_out"] == ["three"]


def test_a_tier_without_its_tool_fails_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needy = tiers.Tier("needy", "this", ((sys.executable, "-c", ""),), tools=("no-such-tool",))
    monkeypatch.setattr(tiers, "TIERS", (needy,))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run(["test"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "sudo apt-get install -y no-such-tool" in said
    assert "--without needy" in said


# Tables

LONG = "a-word-that-is-much-longer-than-a-column-can-be-on-a-terminal-" * 3


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_cut_from_a_table(terminal: bool) -> None:
    to = Console(file=io.StringIO(), width=80, force_terminal=terminal, color_system=None, legacy_windows=False)
    table = Table("one", "two", "three")
    table.add_row(LONG, "word", LONG)
    print_table(table, to)
    assert isinstance(to.file, io.StringIO)
    text = to.file.getvalue()
    assert "…" not in text
    if terminal:
        assert max(map(len, text.splitlines())) <= 80
        assert "".join(line.split("│")[1].strip() for line in text.splitlines() if "│" in line) == LONG
    else:
        assert text.count(LONG) == 2


# Ctrl-C

INTERRUPTED = """
from gevent import monkey; monkey.patch_all()
import gevent, os, signal, subprocess, sys, threading, time
from onprem_mlops import cli

def interrupt():
    time.sleep(0.2)
    os.kill(os.getpid(), signal.{name})
    time.sleep(0.1)

def command(*arguments, **options):
    where = "{where}"
    if where == "thread":
        threading.Thread(target=interrupt, daemon=True).start()
    elif where == "greenlet":
        gevent.spawn(interrupt)
    else:
        subprocess.Popen(["sh", "-c", f"sleep 0.2; kill -s {{'{name}'[3:]}} {{os.getpid()}}"])
    while where == "work":
        pass
    gevent.joinall([gevent.spawn(gevent.sleep, 20)])

cli.app = command
sys.exit(cli.run([]))
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("where", ["thread", "greenlet", "loop", "work"])
def test_an_interruption_is_told_once(where: str, name: str, tmp_path: Path) -> None:
    """Wherever the signal meets the process: in the loop it used to be printed, in a thread it used to be lost."""
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED.format(where=where, name=name))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 3
    assert done.stdout == ""
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == [
        "error interrupted",
        "  Run it again to go on where it stopped",
    ]


# lab up


@pytest.mark.parametrize(("codes", "code"), [((0, 2), 2), ((1, 0), 1)])
def test_lab_up_holds_the_deploy_and_the_verification(
    codes: tuple[int, int], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed, verified = (
        Result({"of": of}, exit_code=one) for of, one in zip(("deploy", "verify"), codes, strict=True)
    )
    monkeypatch.setenv("MLOPS_STATE", str(tmp_path))
    monkeypatch.setattr("onprem_mlops.artifacts.Store.missing", lambda *arguments: ())
    monkeypatch.setattr("onprem_mlops.site.material.ensure_lab_material", lambda site: site)
    monkeypatch.setattr("onprem_mlops.lab.up", lambda *arguments: None)
    monkeypatch.setattr("onprem_mlops.cli.lab_commands.run_phase", lambda *arguments, **options: deployed)
    monkeypatch.setattr("onprem_mlops.cli.lab_commands.verify_phase", lambda *arguments: verified)
    assert run(["lab", "up", "--json", str(tmp_path / "result.json")]) == code
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["schema"], result["site"]) == ("onprem-mlops/lab-up/v1", "lab")
    assert {"boot_seconds", "seconds"} <= result.keys()
    assert result["deploy"] == {"of": "deploy"}
    assert result["verify"] == (None if codes[0] else {"of": "verify"})


@pytest.mark.parametrize(("command", "green"), [("mirror", False), ("deploy", True)])
def test_the_store_is_filled_by_real_threads(command: str, green: bool) -> None:
    # Signing packages on a greenlet's stack ended in a segmentation fault.
    script = (
        f"import sys; sys.argv = ['mlops', '{command}']; import onprem_mlops.__main__; "
        "from gevent import monkey; print(monkey.is_module_patched('threading'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(green)
