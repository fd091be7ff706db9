"""Parameters of this machine's kernel that all nodes share: raised where too low, set back when the last lab goes.

A node's network is its own, but what it sets below kernel., vm. and fs. it sets for this machine.
"""

from __future__ import annotations

import json
from pathlib import Path

from onprem_mlops.atomic import write_atomically
from onprem_mlops.lab.folders import shared_folder

_KERNEL = Path("/proc/sys")

_INSTANCES = "fs.inotify.max_user_instances"

ENOUGH_INSTANCES = 1024
"""Every systemd, kubelet and containerd of every node watches files as the same user, root; the default is 128."""

_SHARED = (
    _INSTANCES,
    "fs.inotify.max_user_watches",
    "kernel.dmesg_restrict",
    "kernel.keys.root_maxbytes",
    "kernel.keys.root_maxkeys",
    "kernel.panic",
    "kernel.panic_on_oops",
    "vm.max_map_count",
    "vm.overcommit_memory",
    "vm.panic_on_oom",
    "vm.swappiness",
)
"""What kubelet and the hardening of a Kubernetes node write."""


def raise_limits() -> str | None:
    """Note the shared parameters, raise what is too low; what was done, in words, or None."""
    if not _record().exists():
        values = {name: _file(name).read_text().strip() for name in _SHARED if _file(name).exists()}
        write_atomically(_record(), json.dumps(values).encode())
    before = int(_file(_INSTANCES).read_text())
    if before >= ENOUGH_INSTANCES:
        return None
    _file(_INSTANCES).write_text(str(ENOUGH_INSTANCES))
    return f"raised {_INSTANCES} from {before} to {ENOUGH_INSTANCES} until the last lab is destroyed"


def restore_limits() -> None:
    """Set the shared parameters back to what they were before the first lab."""
    if not _record().exists():
        return
    values: dict[str, str] = json.loads(_record().read_text())
    for name, value in values.items():
        if _file(name).read_text().strip() != value:
            _file(name).write_text(value)
    _record().unlink()


def _file(name: str) -> Path:
    return _KERNEL / name.replace(".", "/")


def _record() -> Path:
    return shared_folder() / "kernel-before.json"
