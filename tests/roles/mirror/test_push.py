"""What a push sends, unpacked and checked by the very shell lines that the node runs."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from pyinfra.context import ctx_host

from onprem_mlops.artifacts.manifest import TreeFile
from onprem_mlops.engine.facts import Probe, Probed
from onprem_mlops.engine.operation import Command
from onprem_mlops.engine.operations import mirror
from onprem_mlops.engine.operations.mirror import Stream, tar_blocks
from onprem_mlops.errors import MlopsError

generator = mirror.pushed.generator  # type: ignore[attr-defined]


class ThisMachine:
    """A node whose facts are read, and whose commands are run, in this machine's own shell."""

    def get_fact(self, kind: type[object], command: str) -> Probed:
        assert kind is Probe
        fact = Probe()
        done = subprocess.run(["sh", "-c", fact.command(command)], capture_output=True, text=True, check=False)
        return fact.process(done.stdout.split("\n")[:-1])


def execute(command: Command) -> None:
    """Carry out a command of a push as a node would."""
    if isinstance(command, Stream):
        given = b"".join(command._source())
    else:
        given = str(command.connector_arguments.get("_stdin", "")).encode()
    done = subprocess.run(["sh", "-c", command.get_raw_value()], input=given, capture_output=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.decode())


def push(root: Path, files: list[TreeFile], *, stop_after: int | None = None) -> int:
    """Push and give the number of commands; `stop_after` so many of them is where the run dies."""
    count = 0
    with ctx_host.use(ThisMachine()):
        commands: Iterator[Command] = generator(str(root), files)
        for command in commands:
            execute(command)
            count += 1
            if count == stop_after:
                break
    return count


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def store(folder: Path, contents: dict[str, bytes]) -> list[TreeFile]:
    """Blobs in a folder, and the tree that they make."""
    files = []
    for path, data in contents.items():
        digest = hashlib.sha256(data).hexdigest()
        (folder / digest).write_bytes(data)
        files.append(TreeFile(path=PurePosixPath(path), source=folder / digest, sha256=digest, size=len(data)))
    return files


CONTENTS = {
    "files/a/1/big": os.urandom(700_001),
    "files/a/1/same": b"same",
    "apt/x/same": b"same",
    "registry/empty": b"",
}


def served(root: Path) -> dict[str, bytes]:
    current = root / "current"
    return {str(path.relative_to(current)): path.read_bytes() for path in current.rglob("*") if path.is_file()}


def test_what_is_served_is_what_was_pushed_and_a_second_push_does_nothing(root: Path, tmp_path: Path) -> None:
    files = store(tmp_path, CONTENTS)
    assert push(root, files) > 0
    assert served(root) == CONTENTS
    assert push(root, files) == 0


def test_a_changed_tree_sends_only_what_is_new_and_leaves_nothing_behind(root: Path, tmp_path: Path) -> None:
    push(root, store(tmp_path, CONTENTS))
    old = (root / "current/files/a/1/big").stat().st_ino
    changed = {"files/a/2/big": CONTENTS["files/a/1/big"], "files/b": b"new"}
    files = store(tmp_path, changed)
    with ctx_host.use(ThisMachine()):
        streams = [one for one in generator(str(root), files) if isinstance(one, Stream)]
    assert len(b"".join(streams[0]._source())) < 10_000
    push(root, files)
    assert served(root) == changed
    assert (root / "current/files/a/2/big").stat().st_ino == old
    assert len([path for path in (root / "trees").iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4])
def test_a_push_that_died_goes_on(root: Path, tmp_path: Path, stop_after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "BATCH_BYTES", 1)
    files = store(tmp_path, CONTENTS)
    push(root, files, stop_after=stop_after)
    push(root, files)
    assert served(root) == CONTENTS
    assert push(root, files) == 0


def test_a_file_that_is_cut_short_in_the_store_never_takes_its_name(root: Path, tmp_path: Path) -> None:
    files = store(tmp_path, CONTENTS)
    files[0].source.write_bytes(b"damaged")
    with pytest.raises(RuntimeError, match="not the file that the catalogue pins"):
        push(root, files)
    assert not (root / "current").exists()
    assert not (root / "incoming" / files[0].sha256).exists()


@pytest.mark.parametrize("harm", ["write", "remove", "add"])
def test_harm_to_the_served_tree_is_seen_and_mended(root: Path, tmp_path: Path, harm: str) -> None:
    files = store(tmp_path, CONTENTS)
    push(root, files)
    target = root / "current/files/a/1/big"
    if harm == "write":
        target.write_bytes(b"x" * target.stat().st_size)
    elif harm == "remove":
        target.unlink()
    else:
        (root / "current/files/foreign").write_text("?")
    assert push(root, files) > 0
    assert served(root) == CONTENTS
    assert push(root, files) == 0


def test_files_that_arrived_before_a_power_cut_are_checked_again(root: Path, tmp_path: Path) -> None:
    files = store(tmp_path, CONTENTS)
    push(root, files, stop_after=1)
    (root / "incoming" / files[0].sha256).write_bytes(b"lost")
    push(root, files)
    assert served(root) == CONTENTS


def test_a_full_disk_is_said_before_anything_is_sent(root: Path, tmp_path: Path) -> None:
    huge = TreeFile(path=PurePosixPath("files/huge"), source=tmp_path, sha256="0" * 64, size=10**18)
    with pytest.raises(MlopsError, match="GB free"):
        push(root, [huge])


def test_a_tar_is_made_in_small_blocks(tmp_path: Path) -> None:
    files = store(tmp_path, {"big": os.urandom(5 << 20)})
    assert max(len(block) for block in tar_blocks(files)) <= mirror.BLOCK_BYTES
