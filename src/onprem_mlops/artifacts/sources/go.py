"""Commands, and other files, from pinned Go modules."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from onprem_mlops import prerequisites
from onprem_mlops.artifacts import layers
from onprem_mlops.artifacts.catalogue import CSource, GoSource, ModuleSource
from onprem_mlops.artifacts.processes import CommandFailed
from onprem_mlops.artifacts.sources import toolchain
from onprem_mlops.artifacts.sources.workshop import Made, Workshop


def module_folder(shop: Workshop, module: str) -> Path:
    """The wrapper module's folder in the repository."""
    return shop.catalogue.folder / "go" / module


def environment(shop: Workshop) -> dict[str, str]:
    """Go's settings for a build that gives the same everywhere.

    go.sum pins every module, so the checksum database is not asked, and `-mod=readonly` refuses what it lacks.
    """
    return {
        "CGO_ENABLED": "0",
        "GOARCH": "amd64",
        "GOCACHE": str(shop.folders.build / "go-cache"),
        "GOFLAGS": "-mod=readonly -buildvcs=false -modcacherw",
        "GOMODCACHE": str(shop.folders.build / "go-mod"),
        "GOOS": "linux",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }


def build(source: GoSource, shop: Workshop) -> Made:
    """Build the commands of `source`."""
    if source.cgo:
        prerequisites.require("gcc")
    go = toolchain.go(shop)
    out = shop.folder("out")
    flags = ["-trimpath", "-tags", ",".join(source.tags)]
    # No debug information: nobody debugs these binaries, and it costs a sixth of the time and a third of the size.
    flags += ["-gcflags=all=-dwarf=false"]
    flags += ["-ldflags", f"-s -w {source.ldflags.replace('{version}', shop.artifact.version)}".strip()]
    shop.run(
        [str(go), "build", *flags, "-o", f"{out}/", *source.commands.values()],
        cwd=module_folder(shop, source.module),
        env=environment(shop) | ({"CGO_ENABLED": "1"} if source.cgo else {}),
    )
    files = {name: out / _basename(package) for name, package in source.commands.items()}
    return Made(files, made_with=toolchain.describe(go))


def _basename(package: str) -> str:
    """How `go build` names the command of a package: the last part of its path that is no major version."""
    parts = [part for part in package.split("/") if not re.fullmatch(r"v\d+", part)]
    return parts[-1]


def take(source: ModuleSource, shop: Workshop) -> Made:
    """Copy files out of a module; a folder becomes a tar."""
    go = toolchain.go(shop)
    root = downloaded(shop, go, source.module, source.path)
    files: dict[str, Path] = {}
    for name, inside in source.files.items():
        origin = root / inside
        if origin.is_dir():
            files[name] = shop.work / name
            layers.tar_of_folder(origin, files[name], source.executable)
        else:
            files[name] = origin
    return Made(files, made_with=toolchain.describe(go))


def compile_c(source: CSource, shop: Workshop) -> Made:
    """Compile one C file of a module into a static command, or files of ours into a shared library."""
    prerequisites.require("gcc")
    root = downloaded(shop, toolchain.go(shop), source.module, source.path)
    target = shop.work / source.command
    flags = [flag.replace("{version}", shop.artifact.version) for flag in source.flags]
    if source.own:
        files = [str(shop.catalogue.folder / name) for name in source.own]
        flags += ["-shared", "-fPIC", f"-I{root / source.headers}", f"-Wl,-soname,{source.command}"]
    else:
        files = [str(root / source.file)]
        flags += ["-static"]
    shop.run(["gcc", "-Os", "-Wall", "-s", *flags, "-o", str(target), *files])
    return Made({source.command: target}, made_with="gcc")


def downloaded(shop: Workshop, go: Path, module: str, path: str) -> Path:
    """The folder of the module `path` at the version that the wrapper module pins."""
    listing = _output(shop, go, module, "list", "-m", "-json", path)
    if not listing.get("Dir"):
        listing = _output(shop, go, module, "mod", "download", "-json", path)
    return Path(str(listing["Dir"]))


def _output(shop: Workshop, go: Path, module: str, *arguments: str) -> Mapping[str, object]:
    done = subprocess.run(
        [str(go), *arguments],
        cwd=module_folder(shop, module),
        env={**os.environ, **environment(shop)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CommandFailed(f"`go {' '.join(arguments)}` in artifacts/go/{module}:\n{done.stderr.strip()}")
    found = json.loads(done.stdout)
    return found if isinstance(found, dict) else {}
