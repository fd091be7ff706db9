"""The command line that boots a node."""

from __future__ import annotations

import os
from pathlib import Path

from onprem_mlops.lab.folders import NodeFolders
from onprem_mlops.lab.spec import LabNode, LabSpec

REBOOT_STATUS = 133
"""How systemd-nspawn ends when the node asks for a reboot and no unit manager was told to do it."""

_UNIFIED = Path("/sys/fs/cgroup/cgroup.controllers")
"""There if this machine has control groups of version 2 alone."""

_MODULES = Path("/lib/modules") / os.uname().release


def command(spec: LabSpec, node: LabNode, folders: NodeFolders) -> list[str]:
    """systemd-nspawn with what a Kubernetes node needs; the caller has put this process into its control groups."""
    binds = [f"--bind={data_folder(folders, path)}:{path}" for path in spec.data_folders]
    # Nodes share this machine's kernel, so its modules are theirs to load, if it has any. Those of kernels that a role
    # lays down on a node lie beside them.
    modules = [f"--bind-ro={_MODULES}"] if _MODULES.is_dir() else []
    return [
        "systemd-nspawn",
        "--boot",
        f"--directory={folders.root}",
        f"--machine={spec.machine(node)}",
        f"--hostname={node.name}",
        "--register=no",
        "--keep-unit",
        f"--network-bridge={spec.bridge}",
        "--capability=all",
        # runc needs keys, bpf and mounts of its own.
        "--system-call-filter=add_key keyctl bpf @privileged",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        # kubelet watches the kernel's log for out-of-memory kills and will not start without it.
        "--bind=/dev/kmsg",
        "--console=pipe",
        *binds,
        *modules,
        *_init_arguments(node),
    ]


def data_folder(folders: NodeFolders, path: str) -> Path:
    """Where this machine keeps a node's data folder."""
    return folders.data / path.strip("/").replace("/", "-")


def _init_arguments(node: LabNode) -> list[str]:
    """What the node's init is told. Containers have no kernel command line; systemd takes its arguments for one."""
    if node.release == "bookworm" or _UNIFIED.exists():
        return []
    # systemd 256 and later refuse to boot on control groups of version 1 unless told twice.
    return ["SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1", "systemd.unified_cgroup_hierarchy=0"]
