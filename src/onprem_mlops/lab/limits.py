"""Limits of this machine's kernel that several nodes at once run into."""

from __future__ import annotations

from pathlib import Path

from onprem_mlops.lab.folders import shared_folder

_INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")

ENOUGH_INSTANCES = 1024
"""Every systemd, kubelet and containerd of every node watches files as the same user, root; the default is 128."""


def raise_limits() -> str | None:
    """Raise what is too low; what was done, in words, or None. `restore_limits` takes it back."""
    before = int(_INSTANCES.read_text())
    if before >= ENOUGH_INSTANCES:
        return None
    _record().parent.mkdir(parents=True, exist_ok=True)
    _record().write_text(str(before))
    _INSTANCES.write_text(str(ENOUGH_INSTANCES))
    return f"raised fs.inotify.max_user_instances from {before} to {ENOUGH_INSTANCES} until the last lab is destroyed"


def restore_limits() -> None:
    """Set back what `raise_limits` raised."""
    if _record().exists():
        _INSTANCES.write_text(_record().read_text())
        _record().unlink()


def _record() -> Path:
    return shared_folder() / "inotify-instances-before"
