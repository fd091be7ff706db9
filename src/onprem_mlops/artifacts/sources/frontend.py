"""A web interface that lies in a Go module as source: built by the module's own package.json, packed as one tar."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from onprem_mlops.artifacts import layers
from onprem_mlops.artifacts.catalogue import FrontendSource
from onprem_mlops.artifacts.sources import go, toolchain
from onprem_mlops.artifacts.sources.workshop import Made, Workshop


def build(source: FrontendSource, shop: Workshop) -> Made:
    """Install what the module's lock names, run its build, and pack the wanted folders.

    The lock carries a hash of every package, and packages' own install scripts do not run.
    """
    node = toolchain.node(shop)
    module = _copy(go.downloaded(shop, toolchain.go(shop), source.module, source.path), shop.work / "module")
    environment = {
        "PATH": f"{node.binary.parent}:{os.environ['PATH']}",
        # The package.json may name another pnpm, which this one would fetch and become, unpinned.
        "npm_config_manage_package_manager_versions": "false",
        "npm_config_cache": str(shop.folder("npm-cache")),
        "npm_config_store_dir": str(shop.folder("packages")),
        **source.environment,
    }
    pnpm = [str(node.binary), str(node.pnpm)]
    shop.run([*pnpm, "install", "--prod", "--frozen-lockfile", "--ignore-scripts"], cwd=module, env=environment)
    shop.run([*pnpm, "exec", *source.build], cwd=module, env=environment)
    root = shop.folder("packed")
    for folder in source.folders:
        (root / folder).parent.mkdir(parents=True, exist_ok=True)
        (module / folder).rename(root / folder)
    target = shop.work / source.tar
    layers.tar_of_folder(root, target, ())
    pin = shop.catalogue.node
    return Made({source.tar: target}, made_with=f"{pin.requirement} {pin.pnpm}" if pin else "")


def _copy(module: Path, target: Path) -> Path:
    """A copy that can be written in: Go's module cache is read-only and shared."""
    shutil.copytree(module, target, symlinks=True)
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o200)
    return target
