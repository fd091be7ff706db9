"""The root file system that all nodes of a release share, unpacked once, read-only below each node's own layer."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from onprem_mlops import paths
from onprem_mlops.lab.folders import shared_folder
from onprem_mlops.lab.host import locked, run
from onprem_mlops.lab.spec import Release
from onprem_mlops.prerequisites import require

PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "libpam-systemd",
    "openssh-server",
    "sudo",
    "iproute2",
    "ca-certificates",
    "kmod",
    "procps",
    "iputils-ping",
)
"""A minimal server as a data centre's own installer leaves it; roles install the rest from the site's mirror."""

_DPKG_OPTIONS = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
)


def root_file_system(release: Release) -> Path:
    """The unpacked root file system of a release, made if missing. Stable: a lab's disks are layers over it."""
    archive = _archive(release)
    tree = shared_folder() / "roots" / f"{release}-{_digest(archive)[:16]}"
    with locked(shared_folder() / "roots.lock"):
        if not tree.exists():
            _unpack(archive, tree)
    return tree


def use(tree: Path, site: str) -> None:
    """Note that a site's disks lie over an unpacked root file system."""
    with locked(shared_folder() / "roots.lock"):
        _users(tree).mkdir(parents=True, exist_ok=True)
        (_users(tree) / site).touch()


def release_all(site: str) -> bool:
    """A site's disks are gone: remove the unpacked root file systems that no other lab uses. True if none is left."""
    roots = shared_folder() / "roots"
    if not roots.is_dir():
        return True
    with locked(shared_folder() / "roots.lock"):
        for users in roots.glob("*.users"):
            (users / site).unlink(missing_ok=True)
            if not any(users.iterdir()):
                shutil.rmtree(roots / users.name.removesuffix(".users"), ignore_errors=True)
                users.rmdir()
        return not any(roots.iterdir())


def forget_all() -> None:
    """Remove the folder that labs share, once no lab is left."""
    shutil.rmtree(shared_folder(), ignore_errors=True)


def _users(tree: Path) -> Path:
    return tree.with_name(f"{tree.name}.users")


def _archive(release: Release) -> Path:
    """The packed root file system; built with mmdebstrap if the cache has none of this recipe."""
    recipe = json.dumps([release, PACKAGES, _DPKG_OPTIONS])
    archive = paths.cache_dir() / "lab" / f"root-{release}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.tar"
    with locked(archive.with_suffix(".lock")):
        if not archive.exists():
            require("mmdebstrap", "tar")
            temporary = archive.with_name(f".{archive.name}")
            options = [f"--dpkgopt={option}" for option in _DPKG_OPTIONS]
            packages = f"--include={','.join(PACKAGES)}"
            run(
                "mmdebstrap",
                "--variant=minbase",
                "--format=tar",
                packages,
                *options,
                release,
                str(temporary),
                timeout=1800,
            )
            archive.with_suffix(".sha256").write_text(_sha256(temporary))
            temporary.replace(archive)
    return archive


def _digest(archive: Path) -> str:
    return archive.with_suffix(".sha256").read_text()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(archive: Path, tree: Path) -> None:
    temporary = tree.with_name(f".{tree.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    run(
        "tar",
        "--xattrs",
        "--xattrs-include=*",
        "-C",
        str(temporary),
        "--numeric-owner",
        "-xpf",
        str(archive),
        timeout=600,
    )
    temporary.chmod(0o755)
    temporary.replace(tree)
