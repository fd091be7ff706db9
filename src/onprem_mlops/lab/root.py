"""The root file system that all nodes of a release share, unpacked once, read-only below each node's own layer."""

from __future__ import annotations

import os
from pathlib import Path

from onprem_mlops.artifacts.store import Store
from onprem_mlops.errors import RequestError
from onprem_mlops.lab.folders import shared_folder
from onprem_mlops.lab.host import remove_tree, run
from onprem_mlops.lab.spec import Release
from onprem_mlops.locks import locked

_ARCHIVE = "rootfs.tar"


def root_file_system(release: Release, site: str) -> Path:
    """The unpacked root file system of a release for a site's disks. Raises RequestError if the store lacks it.

    One folder a digest, never changed: disks are layers over it. It stays until `forget` of all sites that asked.
    """
    store, artifact = Store(), f"lab-rootfs-{release}"
    if store.missing([artifact]):
        raise RequestError(f"the artifact store has no {artifact}", f"Make it with ./mlops mirror build {artifact}.")
    archive = store.file(artifact, _ARCHIVE)
    tree = shared_folder() / "roots" / f"{release}-{archive.sha256[:16]}"
    with locked(_lock()):
        if not tree.exists():
            _unpack(archive.path, tree)
        _users(tree).mkdir(parents=True, exist_ok=True)
        (_users(tree) / site).touch()
    return tree


def forget(site: str) -> bool:
    """A site's disks are gone: remove the unpacked root file systems that no other lab uses. True if none is left."""
    roots = shared_folder() / "roots"
    if not roots.is_dir():
        return True
    with locked(_lock()):
        for tree in [one for one in roots.iterdir() if one.suffix != _USERS]:
            (_users(tree) / site).unlink(missing_ok=True)
            if not _users(tree).is_dir() or not any(_users(tree).iterdir()):
                remove_tree(_users(tree))
                remove_tree(tree)
        return not any(roots.iterdir())


def forget_all() -> None:
    """Remove the folder that labs share, once no lab is left."""
    remove_tree(shared_folder())


_USERS = ".users"


def _users(tree: Path) -> Path:
    return tree.with_name(f"{tree.name}{_USERS}")


def _lock() -> Path:
    return shared_folder() / "roots.lock"


def _unpack(archive: Path, tree: Path) -> None:
    temporary = tree.with_name(f".{tree.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    # File capabilities (ping has one) are extended attributes.
    keep = ("--xattrs", "--xattrs-include=*", "--numeric-owner", "--preserve-permissions")
    run("tar", "--extract", f"--file={archive}", f"--directory={temporary}", *keep, timeout=600)
    temporary.chmod(0o755)
    temporary.replace(tree)
