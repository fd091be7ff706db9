"""Supervision on a machine with control groups version 1 and no systemd as its init.

Each node has a control group in every hierarchy, below one group for the lab. A keeper, a shell that mostly sleeps,
puts systemd-nspawn into them and starts it again when the node reboots. Whatever dies, the node's processes are
found through its control groups.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import signal
import subprocess
from pathlib import Path

from onprem_mlops.errors import MlopsError
from onprem_mlops.lab import disks, nspawn
from onprem_mlops.lab.host import Pid, command_line, mounts, parent_process, wait_until
from onprem_mlops.lab.spec import LabSpec
from onprem_mlops.lab.supervision import Container, leader
from onprem_mlops.locks import is_locked

_LOOP = """\
#!/bin/sh
# Keeps {machine}: starts it again when it reboots. Holds descriptor 9's lock as long as it lives.
exec 9>>{lock}
flock -n 9 || exit 0
launch() (
    exec 9>&-
    for group in {groups}; do
        # No group below outlives a boot: the kubelet would take three seconds over each of its old containers.
        find "$group" -mindepth 1 -depth -type d -exec rmdir {{}} + 2>/dev/null
        echo 0 >"$group/cgroup.procs"
    done
    exec {nspawn}
)
{first}
while [ $status -eq {reboot} ]; do
    launch
    status=$?
done
exit $status
"""

_START = "status={reboot}"

# Not our child, so its exit status is lost: what the node noted last tells a reboot from a power-off or power cut.
_ADOPT = """\
rm -f {ended}
tail --pid={pid} -f /dev/null 9>&-
status=0
grep -qs reboot {ended} && status={reboot}"""


class LegacySupervision:
    """Keepers and control groups of version 1. Proven on Linux 6.18, systemd 252."""

    def start(self, container: Container) -> None:
        """See Supervision.start."""
        self._make_groups(container)
        container.folders.console.write_bytes(b"")
        self._keep(container, _START.format(reboot=nspawn.REBOOT_STATUS))

    def adopt(self, container: Container) -> bool:
        """See Supervision.adopt. Needs systemd-nspawn alive: without it nobody holds the node's network pair."""
        init = leader(self, container)
        parent = parent_process(init) if init else None
        if parent is None or not _is_nspawn(parent, container):
            return False
        ended = shlex.quote(str(container.folders.root / disks.ENDED))
        self._keep(container, _ADOPT.format(pid=parent, ended=ended, reboot=nspawn.REBOOT_STATUS))
        return True

    def supervised(self, container: Container) -> bool:
        """See Supervision.supervised."""
        return is_locked(container.folders.keeper_lock)

    def processes(self, container: Container) -> list[Pid]:
        """See Supervision.processes."""
        found: dict[Pid, None] = {}
        for group in node_groups(container):
            for folder, _, _ in os.walk(group, topdown=True):
                found.update(dict.fromkeys(_members(Path(folder))))
        return list(found)

    def inits(self, container: Container) -> list[Pid]:
        """See Supervision.inits."""
        named = [group for group in node_groups(container) if group.parents[1].name == "systemd"]
        likely = [pid for group in named for pid in _members(group / "init.scope")]
        return likely + self.processes(container)

    def memory_bytes(self, container: Container) -> int | None:
        """See Supervision.memory_bytes."""
        group = next((one for one in node_groups(container) if (one / "memory.usage_in_bytes").exists()), None)
        if group is None or leader(self, container) is None:
            return None
        used = int((group / "memory.usage_in_bytes").read_text())
        lines = (group / "memory.stat").read_text().splitlines()
        return used - next(int(line.split()[1]) for line in lines if line.startswith("total_inactive_file "))

    def forget(self, container: Container) -> None:
        """See Supervision.forget."""
        keeper_gone = wait_until(lambda: not self.supervised(container), 5)
        if not keeper_gone:
            raise MlopsError(f"{container.node.name}: its keeper does not end", f"See {container.folders.console}.")
        for group in node_groups(container):
            _remove_tree(group)

    def forget_lab(self, spec: LabSpec) -> None:
        """See Supervision.forget_lab."""
        for hierarchy in hierarchies():
            with contextlib.suppress(FileNotFoundError):
                _remove_tree(hierarchy / _lab_group(spec))

    def _make_groups(self, container: Container) -> None:
        for group in node_groups(container):
            for folder in (group.parent, group):
                folder.mkdir(exist_ok=True)
                _allow_processors(folder)
        limit = container.node.memory_mib
        for group in node_groups(container):
            if (group / "memory.limit_in_bytes").exists():
                (group / "memory.limit_in_bytes").write_text(str(limit * 1024 * 1024) if limit else "-1")

    def _keep(self, container: Container, first: str) -> None:
        script = keeper_script(container, first)
        container.folders.keeper_script.write_text(script)
        keeper, console = (
            shlex.quote(str(path)) for path in (container.folders.keeper_script, container.folders.console)
        )
        # The shell between ends at once, so that the keeper belongs to nobody who waits or is waited for.
        subprocess.run(
            ["sh", "-c", f"setsid sh {keeper} </dev/null >>{console} 2>&1 &"],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )


def keeper_script(container: Container, first: str) -> str:
    """The keeper of a node; `first` sets `status`, which decides whether it boots the node (again)."""
    return _LOOP.format(
        machine=container.machine,
        lock=shlex.quote(str(container.folders.keeper_lock)),
        groups=" ".join(shlex.quote(str(group)) for group in node_groups(container)),
        nspawn=shlex.join(nspawn.command(container.spec, container.node, container.folders)),
        first=first,
        reboot=nspawn.REBOOT_STATUS,
    )


def hierarchies() -> list[Path]:
    """Where the control group hierarchies of this machine are mounted."""
    return list(dict.fromkeys(mount.target for mount in mounts() if mount.kind in ("cgroup", "cgroup2")))


def node_groups(container: Container) -> list[Path]:
    """A node's control group in each hierarchy."""
    return [hierarchy / _lab_group(container.spec) / container.node.name for hierarchy in hierarchies()]


def _lab_group(spec: LabSpec) -> str:
    return f"mlops-lab-{spec.site}"


def _allow_processors(folder: Path) -> None:
    """Copy the processors and memory nodes of the parent: a new cpuset has none, and lets no process in."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        file = folder / name
        if file.exists() and not file.read_text().strip():
            file.write_text((folder.parent / name).read_text())


def _members(folder: Path) -> list[Pid]:
    try:
        return [Pid(int(line)) for line in (folder / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _is_nspawn(pid: Pid, container: Container) -> bool:
    return f"--machine={container.machine}" in command_line(pid)


def _remove_tree(group: Path) -> None:
    """Remove a control group and those below it, deepest first, ending what is still in them."""
    if not group.exists():
        return
    for folder, _, _ in os.walk(group, topdown=False):
        if not wait_until(lambda path=Path(folder): _removed(path), 10, every=0.05):  # type: ignore[misc]
            raise MlopsError(f"{folder} cannot be removed: processes in it do not end")


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        for pid in _members(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return False
    return True
