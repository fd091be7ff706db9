"""A node's disks: its own layer over the shared root file system, its data folders, and what is on them at first."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

from onprem_mlops.atomic import write_atomically
from onprem_mlops.errors import RequestError
from onprem_mlops.lab import root
from onprem_mlops.lab.folders import NodeFolders
from onprem_mlops.lab.host import mounts, remove_tree, run
from onprem_mlops.lab.keys import LabKeys, host_private_key
from onprem_mlops.lab.nspawn import data_folder
from onprem_mlops.lab.supervision import Container

_USER_ID = 1000

_MASKED = {
    "console-getty.service": "nobody logs in at the console: it is a log file",
    "systemd-journald-audit.socket": "the kernel's audit is this machine's, not the node's",
    "e2scrub_reap.service": "there is no LVM volume to scrub",
    "e2scrub_all.timer": "there is no LVM volume to scrub",
    "fstrim.timer": "the disk below is this machine's to trim",
}

_MOUNTS_SCRIPT = """\
#!/bin/sh
# A container gets control groups and kernel parameters read-only. A Kubernetes node writes both.
for one in /sys/fs/cgroup/*/ /sys/fs/cgroup /proc/sys; do
    mount -o remount,rw,bind "$one" 2>/dev/null
done
# Where a machine has its BPF file system; containers cannot have it at /sys/fs/bpf unless it is made here.
if [ ! -d /sys/fs/bpf ] && mount -o remount,rw /sys; then
    mkdir -p /sys/fs/bpf
    mount -o remount,ro /sys
fi
mkdir -p /run/bpf
mountpoint -q /run/bpf || mount -t bpf bpf /run/bpf
[ -d /sys/fs/bpf ] && ! mountpoint -q /sys/fs/bpf && mount --bind /run/bpf /sys/fs/bpf
exit 0
"""

ENDED = "usr/local/lib/mlops-lab/ended"
"""Where a node notes how it ends, as systemd names it (reboot, poweroff, halt); a power cut leaves no note."""

_SHUTDOWN = f"""\
#!/bin/sh
# Run by systemd as the last thing. The lab has no other way to learn it once the node's keeper was lost.
echo "$1" >/{ENDED}
"""

_MOUNTS_UNIT = """\
[Unit]
Description=Make control groups and kernel parameters of this lab node writable
ConditionVirtualization=systemd-nspawn
DefaultDependencies=no
After=local-fs.target
Before=sysinit.target systemd-sysctl.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/lib/mlops-lab/mounts

[Install]
WantedBy=sysinit.target
"""

# Before Debian's 80-container-host0.network, which would give the node a link-local address.
_NETWORK = """\
[Match]
Name=host0

[Network]
Address={address}/{prefix}
Gateway={gateway}
DHCP=no
IPv6AcceptRA=no
LLDP=no
"""

_HOST_KEY = "etc/ssh/ssh_host_ed25519_key"

_SSHD = """\
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin no
PasswordAuthentication no
UseDNS no
"""


def check_storage(folder: Path) -> None:
    """Raise RequestError if the lab's state folder cannot carry overlays and container images."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = run("stat", "--file-system", "--format=%T", str(folder)).strip()
    if set(":,\\") & set(str(folder)):
        raise RequestError(
            f"{folder} has a colon, comma or backslash in its name, which mount takes as its own",
            "Set MLOPS_STATE to another folder.",
        )
    if kind in ("overlayfs", "nfs", "fuseblk", "tmpfs"):
        raise RequestError(
            f"{folder} is on {kind}, where nodes' disks cannot lie",
            "Set MLOPS_STATE to a folder on a local disk with ext4 or xfs.",
        )


def attach(container: Container, keys: LabKeys) -> bool:
    """Mount a node's file system, making its disks first if there are none. True if they were made now.

    Raises RequestError if the disks were made for another address or release than the node has now.
    """
    folders = container.folders
    fresh = not folders.made.exists()
    tree = _wanted_tree(container) if fresh else _tree_of(container)
    if fresh:
        _make_empty(container)
    for path in container.spec.data_folders:
        data_folder(folders, path).mkdir(parents=True, exist_ok=True)
    _mount(folders, tree)
    if not fresh:
        _check_host_key(container, keys)
    else:
        _first_files(container, keys)
        write_atomically(folders.made, json.dumps(_origin(container) | {"tree": str(tree)}).encode())
    return fresh


def detach(folders: NodeFolders) -> None:
    """Unmount a node's file system, however often it is mounted."""
    for mount in mounts():
        if mount.target == folders.root:
            run("umount", str(folders.root))


def is_attached(folders: NodeFolders) -> bool:
    """Whether the node's file system is mounted."""
    return any(mount.target == folders.root for mount in mounts())


def _origin(container: Container) -> dict[str, str]:
    return {"address": str(container.node.address), "release": container.node.release}


def _wanted_tree(container: Container) -> Path:
    return root.root_file_system(container.node.release, container.spec.site)


def _tree_of(container: Container) -> Path:
    """The root file system that the node's disks lie over."""
    made: dict[str, str] = json.loads(container.folders.made.read_text())
    advice = f"Destroy the lab {container.spec.site} and bring it up again, or undo the change."
    for what, now in _origin(container).items():
        if made[what] != now:
            raise RequestError(
                f"{container.node.name}: its disks were made with {what} {made[what]}, not {now}", advice
            )
    tree = Path(made["tree"])
    if not tree.is_dir():
        raise RequestError(f"{container.node.name}: the root file system below its disks is gone: {tree}", advice)
    return tree


def _check_host_key(container: Container, keys: LabKeys) -> None:
    """Raise RequestError if the lab's keys are not those that the node's disks were made with."""
    shown = (container.folders.root / _HOST_KEY).with_suffix(".pub")
    if not shown.exists() or shown.read_text().split()[:2] != keys.host[container.node.name].split()[:2]:
        raise RequestError(
            f"{container.node.name}: the host key on its disk is not the pinned one, so it would be refused",
            f"Put the keys of lab {container.spec.site} back, or destroy the lab and bring it up again.",
        )


def _make_empty(container: Container) -> None:
    folders = container.folders
    detach(folders)
    for folder in (folders.upper, folders.work, folders.data):
        remove_tree(folder)
    for folder in (folders.root, folders.upper, folders.work, folders.data):
        folder.mkdir(parents=True, exist_ok=True)
    folders.upper.chmod(0o755)


def _mount(folders: NodeFolders, tree: Path) -> None:
    if is_attached(folders):
        return
    folders.root.mkdir(parents=True, exist_ok=True)
    options = f"lowerdir={tree},upperdir={folders.upper},workdir={folders.work}"
    run("mount", "-t", "overlay", "overlay", "-o", options, str(folders.root))


def _first_files(container: Container, keys: LabKeys) -> None:
    """What an installer would have written: name, address, host key, deploy user; and what a container needs."""
    node, spec, base = container.node, container.spec, container.folders.root
    _write(base / "etc/hostname", f"{node.name}\n")
    _write(base / "etc/machine-id", f"{uuid.uuid4().hex}\n", 0o444)
    _write(base / "etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {node.name}\n::1 localhost\n")
    _write(base / "etc/resolv.conf", "# No name server: names come from /etc/hosts.\n")
    _write(base / "etc/apt/sources.list", "# No source: packages come from the site's mirror.\n")
    for other in (base / "etc/apt/sources.list.d").glob("*"):
        other.unlink()
    _write(base / "etc/locale.conf", "LANG=C.UTF-8\n")
    _link(base / "etc/default/locale", "../locale.conf")
    network = _NETWORK.format(address=node.address, prefix=spec.network.prefixlen, gateway=spec.controller.ip)
    _write(base / "etc/systemd/network/10-host0.network", network)
    _write(base / "usr/local/lib/mlops-lab/mounts", _MOUNTS_SCRIPT, 0o755)
    _write(base / "etc/systemd/system/mlops-lab-mounts.service", _MOUNTS_UNIT)
    _write(base / "usr/lib/systemd/system-shutdown/mlops-lab", _SHUTDOWN, 0o755)
    _enable(base)
    _ssh(base, keys, host_private_key(spec, node.name), keys.host[node.name])
    _ssh_user(base, spec.user, keys.user_public)


def _enable(base: Path) -> None:
    units = {
        "sysinit.target.wants": "/etc/systemd/system/mlops-lab-mounts.service",
        "multi-user.target.wants": "/lib/systemd/system/systemd-networkd.service",
    }
    for wants, unit in units.items():
        _link(base / "etc/systemd/system" / wants / Path(unit).name, unit)
    _link(
        base / "etc/systemd/system/sockets.target.wants/systemd-networkd.socket",
        "/lib/systemd/system/systemd-networkd.socket",
    )
    for unit in _MASKED:
        _link(base / "etc/systemd/system" / unit, "/dev/null")


def _ssh(base: Path, keys: LabKeys, private: str, public: str) -> None:
    for old in (base / "etc/ssh").glob("ssh_host_*"):
        old.unlink()
    _write(base / _HOST_KEY, private, 0o600)
    _write((base / _HOST_KEY).with_suffix(".pub"), f"{public}\n")
    _write(base / "etc/ssh/sshd_config.d/10-lab.conf", _SSHD)


def _ssh_user(base: Path, name: str, public_key: str) -> None:
    home, identity = f"/home/{name}", f"{_USER_ID}:{_USER_ID}"
    _append(base / "etc/passwd", f"{name}:x:{identity}::{home}:/bin/bash\n")
    _append(base / "etc/group", f"{name}:x:{_USER_ID}:\n")
    # No password: only the key lets anyone in.
    _append(base / "etc/shadow", f"{name}:*:20000:0:99999:7:::\n")
    _append(base / "etc/gshadow", f"{name}:!::\n")
    _write(base / f"etc/sudoers.d/90-{name}", f"{name} ALL=(ALL) NOPASSWD: ALL\n", 0o440)
    keys_file = base / home.strip("/") / ".ssh/authorized_keys"
    _write(keys_file, f"{public_key}\n", 0o600)
    for path, mode in ((keys_file.parents[1], 0o755), (keys_file.parent, 0o700), (keys_file, 0o600)):
        path.chmod(mode)
        os.chown(path, _USER_ID, _USER_ID)


def _append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line)


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    # A link out of the tree (resolv.conf) would be followed on this machine.
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
