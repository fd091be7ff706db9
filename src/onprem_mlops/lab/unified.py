"""Supervision on an ordinary Debian or Ubuntu host: systemd as its init, control groups version 2.

Each node is a transient service in a slice of the lab's own; systemd starts it again when it reboots.

How far this was tried: tests/lab passes in a container that plays such a host (systemd 252 as its init, control groups
of version 2 but without controllers, so that memory limits and memory in use were never seen at work). No machine of
that kind was at hand.
"""

from __future__ import annotations

import os
from pathlib import Path

from onprem_mlops.lab import nspawn
from onprem_mlops.lab.host import Pid, run, succeeds
from onprem_mlops.lab.spec import LabSpec
from onprem_mlops.lab.supervision import Container

_CONTROL_GROUPS = Path("/sys/fs/cgroup")


class SystemdSupervision:
    """Transient units of systemd. The module says how far this was tried."""

    def start(self, container: Container) -> None:
        """See Supervision.start."""
        container.folders.console.write_bytes(b"")
        # A unit that failed keeps its name until it is told to forget that.
        succeeds("systemctl", "reset-failed", unit_name(container))
        run(*start_command(container))

    def adopt(self, container: Container) -> bool:
        """See Supervision.adopt. A node without its unit's main process cannot be taken up again."""
        return self.supervised(container)

    def supervised(self, container: Container) -> bool:
        """See Supervision.supervised."""
        return succeeds("systemctl", "is-active", "--quiet", unit_name(container))

    def processes(self, container: Container) -> list[Pid]:
        """See Supervision.processes."""
        return [pid for group in _groups(container) for pid in _members(group)]

    def inits(self, container: Container) -> list[Pid]:
        """See Supervision.inits."""
        return self.processes(container)

    def memory_bytes(self, container: Container) -> int | None:
        """See Supervision.memory_bytes."""
        for group in _groups(container):
            if (group / "memory.current").exists():
                lines = (group / "memory.stat").read_text().splitlines()
                idle = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
                return int((group / "memory.current").read_text()) - idle
        return None

    def forget(self, container: Container) -> None:
        """See Supervision.forget."""
        succeeds("systemctl", "kill", "--signal=SIGKILL", unit_name(container))
        succeeds("systemctl", "stop", unit_name(container))
        succeeds("systemctl", "reset-failed", unit_name(container))

    def forget_lab(self, spec: LabSpec) -> None:
        """See Supervision.forget_lab."""
        succeeds("systemctl", "stop", slice_name(spec))


def unit_name(container: Container) -> str:
    """The node's transient service."""
    return f"mlops-lab-{container.machine}.service"


def slice_name(spec: LabSpec) -> str:
    """The lab's slice. A dash in a slice's name means a slice within a slice, so there is none."""
    return f"mlopslab_{spec.site.replace('-', '_')}.slice"


def start_command(container: Container) -> list[str]:
    """systemd-run with what systemd-nspawn@.service sets, in the lab's slice."""
    log = container.folders.console
    properties = {
        "Delegate": "yes",
        "KillMode": "mixed",
        "RestartForceExitStatus": str(nspawn.REBOOT_STATUS),
        "SuccessExitStatus": str(nspawn.REBOOT_STATUS),
        "TasksMax": "infinity",
        "StandardOutput": f"append:{log}",
        "StandardError": f"append:{log}",
    }
    if container.node.memory_mib:
        properties["MemoryMax"] = f"{container.node.memory_mib}M"
    return [
        "systemd-run",
        "--quiet",
        f"--unit={unit_name(container)}",
        f"--slice={slice_name(container.spec)}",
        f"--description=Lab node {container.machine}",
        *[f"--property={name}={value}" for name, value in properties.items()],
        "--",
        *nspawn.command(container.spec, container.node, container.folders),
    ]


def _groups(container: Container) -> list[Path]:
    """The unit's control group: one with version 2; with version 1, that of systemd's own and memory's hierarchy."""
    named = run("systemctl", "show", "--property=ControlGroup", "--value", unit_name(container)).strip()
    if not named:
        return []
    candidates = [_CONTROL_GROUPS, *(_CONTROL_GROUPS / one for one in ("systemd", "memory"))]
    return [group for one in candidates if (group := one / named.strip("/")).is_dir()]


def _members(group: Path) -> list[Pid]:
    found: list[Pid] = []
    for folder, _, _ in os.walk(group):
        try:
            found += [Pid(int(line)) for line in (Path(folder) / "cgroup.procs").read_text().split()]
        except OSError:  # The group ended while we looked.
            continue
    return found
