"""What a command needs from the operating system: installed when root on Debian, else asked for by name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from onprem_mlops.errors import RequestError

_PACKAGES = {
    "apt-ftparchive": "apt-utils",
    "apt-get": "apt",
    "chromium": "chromium",
    "gcc": "gcc libc6-dev",
    "git": "git",
    "git-lfs": "git-lfs",
    "ip": "iproute2",
    "iptables": "iptables",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "nsenter": "util-linux",
    "pip3": "python3-pip",
    "setpriv": "util-linux",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "systemd-nspawn": "systemd-container",
    "tar": "tar",
    "zstd": "zstd",
}

# Two builds may find something missing at the same time; apt allows one at a time.
_installing = threading.Lock()


def missing(*executables: str) -> tuple[str, ...]:
    """Which of `executables` are not on PATH."""
    return tuple(name for name in executables if shutil.which(name) is None)


def require(*executables: str) -> None:
    """Make sure `executables` are on PATH, or raise RequestError with the command that would install them."""
    with _installing:
        absent = missing(*executables)
        if not absent:
            return
        packages = sorted({p for name in absent for p in _PACKAGES.get(name, name).split()})
        if os.geteuid() != 0 or not Path("/etc/debian_version").exists():
            raise RequestError(
                f"missing on this machine: {', '.join(absent)}",
                f"install it and run again: sudo apt-get install -y {' '.join(packages)}",
            )
        _install(packages)
        if still := missing(*absent):
            raise RequestError(
                f"{' '.join(packages)} installed, but {', '.join(still)} is still missing",
                "see that /usr/sbin and /usr/bin are on PATH",
            )


def _install(packages: list[str]) -> None:
    sys.stderr.write(f"installing on this machine: {' '.join(packages)}\n")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "--no-install-recommends"]
    # Another command of ours, or a person, may be installing something, too.
    patient = [*install, "-o", "DPkg::Lock::Timeout=600", *packages]
    done = subprocess.run(patient, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:  # the package lists may be stale or absent
        subprocess.run(["apt-get", "update"], env=environment, capture_output=True, check=False)
        done = subprocess.run(patient, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-10:])
        raise RequestError(f"cannot install {' '.join(packages)}:\n{last}", f"run: {' '.join([*install, *packages])}")
