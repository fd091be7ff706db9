"""The unpacked root file system that labs share."""

from __future__ import annotations

import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from onprem_mlops.lab import root
from onprem_mlops.lab.folders import shared_folder


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An artifact store with one small root file system."""
    monkeypatch.setenv("MLOPS_STATE", str(tmp_path / "state"))
    archive = tmp_path / "rootfs.tar"
    (tmp_path / "hostname").write_text("node\n")
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "hostname", "etc/hostname")
    found = SimpleNamespace(path=archive, sha256="ab" * 32)
    monkeypatch.setattr(root, "Store", lambda: SimpleNamespace(missing=lambda _: (), file=lambda *_: found))


def test_labs_share_one_copy_that_goes_with_the_last() -> None:
    tree = root.root_file_system("bookworm", "one")
    assert (tree / "etc/hostname").read_text() == "node\n"
    assert root.root_file_system("bookworm", "two") == tree
    assert not root.forget("one")
    assert tree.is_dir()
    assert root.forget("two")
    assert not tree.exists()
    root.forget_all()
    assert not shared_folder().exists()


def test_what_a_killed_unpacking_left_is_removed_with_the_rest() -> None:
    tree = root.root_file_system("bookworm", "one")
    (tree.parent / ".bookworm-abababababababab.123" / "etc").mkdir(parents=True)
    assert root.forget("one")
