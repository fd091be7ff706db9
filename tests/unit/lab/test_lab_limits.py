"""Kernel parameters that nodes share with this machine come back when the last lab goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from onprem_mlops.lab import limits

INSTANCES = "fs/inotify/max_user_instances"


@pytest.fixture(autouse=True)
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel whose parameters are plain files, and a state folder of the test's own."""
    folder = tmp_path / "sys"
    for name, value in ((INSTANCES, "128"), ("kernel/panic", "0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{value}\n")
    monkeypatch.setenv("MLOPS_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(limits, "_KERNEL", folder)
    return folder


def test_what_is_too_low_is_raised_and_said(kernel: Path) -> None:
    assert limits.raise_limits() == (
        "raised fs.inotify.max_user_instances from 128 to 1024 until the last lab is destroyed"
    )
    assert (kernel / INSTANCES).read_text() == "1024"
    assert limits.raise_limits() is None


def test_what_nodes_set_is_set_back_to_what_was_before_the_first_lab(kernel: Path) -> None:
    limits.raise_limits()
    (kernel / "kernel/panic").write_text("10\n")
    (kernel / INSTANCES).write_text("8192\n")
    limits.raise_limits()
    limits.restore_limits()
    assert (kernel / "kernel/panic").read_text().strip() == "0"
    assert (kernel / INSTANCES).read_text().strip() == "128"
    limits.restore_limits()
