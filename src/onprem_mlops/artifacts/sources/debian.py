"""Debian: a flat signed apt repository, and root file systems.

Versions are not pinned in git: a point release removes the replaced version from Debian's mirrors, so a pin would
break within weeks. What was taken, with version and sha256, is in the store's manifest; apt checks Debian's
signature before.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pysequoia
from ruamel.yaml import YAML

from onprem_mlops import prerequisites
from onprem_mlops.artifacts.catalogue import DebSource, RootfsSource
from onprem_mlops.artifacts.processes import CommandFailed
from onprem_mlops.artifacts.sources import generations
from onprem_mlops.artifacts.sources.workshop import Made, Workshop
from onprem_mlops.atomic import write_atomically
from onprem_mlops.errors import RequestError
from onprem_mlops.locks import locked

KEY_NAME = "onprem-mlops.asc"
_NUMBERS = {"bookworm": "12", "trixie": "13"}

_RELEASE_FILE = re.compile(
    rf"^'(https?://[^']+?)/+dists/((?:{'|'.join(_NUMBERS)})(?:-security)?)/InRelease'", re.MULTILINE
)
"""What `apt-get update --print-uris` says of an archive: its address and the release."""


def packages(shop: Workshop, name: str) -> tuple[str, ...]:
    """The package names of a list, which gives each a reason."""
    path = shop.catalogue.folder / name
    listed = YAML(typ="safe").load(path)
    if not isinstance(listed, dict) or not all(isinstance(why, str) and why for why in listed.values()):
        raise RequestError(f"{path}: needs a mapping of package to why it is there")
    return tuple(sorted(listed))


def _sources_list(shop: Workshop, release: str, components: Sequence[str] = ("main",), *, newest: bool = True) -> str:
    debian = shop.catalogue.debian
    if not debian.keyring.exists():
        raise RequestError(
            f"{debian.keyring}: missing, so Debian's signatures cannot be checked",
            "sudo apt-get install -y debian-archive-keyring",
        )
    mirror, fixes = mirrors()
    signed = f"[signed-by={debian.keyring}]"
    archives = [f"{mirror} {release}"]
    if newest:
        archives += [f"{mirror} {release}-updates", f"{fixes} {release}-security"]
    return "".join(f"deb {signed} {archive} {' '.join(components)}\n" for archive in archives)


def mirrors() -> tuple[str, str]:
    """URLs of Debian's archive and its security archive: those of MLOPS_DEBIAN_MIRROR, else of this machine's apt."""
    if mirror := os.environ.get("MLOPS_DEBIAN_MIRROR"):
        return mirror, f"{mirror}-security"
    prerequisites.require("apt-get")
    # Only names what an update would fetch: it needs no network, no lists and no rights.
    named = _capture(["apt-get", "-q", "update", "--print-uris"], Path("/")).decode()
    own = {release: url for url, release in _RELEASE_FILE.findall(named)}
    if found := next((release for release in _NUMBERS if release in own), None):
        return own[found], own.get(f"{found}-security", f"{own[found]}-security")
    raise RequestError(
        f"this machine's apt has no source of Debian's {' or '.join(_NUMBERS)}, so Debian packages come from nowhere",
        "Name a mirror of Debian in MLOPS_DEBIAN_MIRROR; its security archive is looked for at that address with "
        "`-security` at its end.",
    )


# --- the apt repository


def repository(source: DebSource, shop: Workshop) -> Made:
    """Download the packages and everything they need, and index and sign them as a flat repository."""
    prerequisites.require("apt-get", "apt-ftparchive")
    lists = [packages(shop, name) for name in (source.packages, *source.apart)]
    brought = sorted((shop.catalogue.folder / source.brought).glob("*.deb"))
    root = shop.folder("repository")
    pool = shop.folder("repository/pool")
    for deb in _download(source, shop, lists, brought).glob("*.deb"):
        deb.rename(pool / _name(deb))
    if source.previous:
        generations.keep(shop, root, {name for names in lists for name in names})
    # Last, so that they are no part of a generation: who takes one out of the folder does not want it served.
    for deb in brought:
        shutil.copyfile(deb, pool / _name(deb))
    _index(source, shop, root)
    files = {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}
    return Made(files, made_with="apt", prefix=source.folder)


def _name(deb: Path) -> str:
    return deb.name.replace("%3a", "-")  # an epoch's colon makes trouble in URLs


def _download(source: DebSource, shop: Workshop, lists: Sequence[Sequence[str]], brought: Sequence[Path]) -> Path:
    """Resolve against an empty machine, so that the repository is complete for whatever the node already has.

    The first list must be installable both as it is newest and, if `previous`, as the point release has it; the others
    and what was brought in one way at least.
    """
    archives = shop.folder("archives")
    ways = [_apt(source, shop, archives, newest=newest) for newest in ((True, False) if source.previous else (True,))]
    first, *apart = lists
    for apt in ways:
        _fetch(shop, apt, first)
    for names in (*apart, *((str(deb),) for deb in brought)):
        # If there is no way, the newest one says why.
        for apt in [apt for apt in ways if _installable(shop, apt, names)] or ways[:1]:
            _fetch(shop, apt, names)
    return archives


def _fetch(shop: Workshop, apt: Mapping[str, str], names: Sequence[str]) -> None:
    shop.run(["apt-get", "-q", "-y", "--download-only", "install", *names], env=apt)


def _installable(shop: Workshop, apt: Mapping[str, str], names: Sequence[str]) -> bool:
    """Whether apt could install them, by its lists alone: that a mirror does not answer must not look like a no."""
    try:
        shop.run(["apt-get", "-q", "--simulate", "install", *names], env=apt)
    except CommandFailed:
        return False
    return True


def _apt(source: DebSource, shop: Workshop, archives: Path, *, newest: bool) -> dict[str, str]:
    """The environment of an apt-get of our own, which downloads to `archives`: its lists are read, nothing more."""
    apt = shop.folder("apt-newest" if newest else "apt-previous")
    for needed in ("state/lists/partial", "cache", "etc/sources.list.d", "etc/preferences.d"):
        (apt / needed).mkdir(parents=True)
    (archives / "partial").mkdir(exist_ok=True)
    (apt / "state/status").touch()
    (apt / "etc/sources.list").write_text(_sources_list(shop, source.release, source.components, newest=newest))
    configuration = apt / "apt.conf"
    configuration.write_text(_apt_configuration(apt, archives))
    env = {"APT_CONFIG": str(configuration), "DEBIAN_FRONTEND": "noninteractive"}
    shop.run(["apt-get", "-q", "update", "--error-on=any"], env=env)
    return env


def _apt_configuration(apt: Path, archives: Path) -> str:
    settings = {
        "APT::Architecture": "amd64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",  # the cache folder is the user's own, closed to the user _apt
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Debug::NoLocking": "true",
        "Dir::Cache": f"{apt}/cache",
        "Dir::Cache::archives": f"{archives}",
        "Dir::Etc::preferences": f"{apt}/etc/preferences",
        "Dir::Etc::preferencesparts": f"{apt}/etc/preferences.d",
        "Dir::Etc::sourcelist": f"{apt}/etc/sources.list",
        "Dir::Etc::sourceparts": f"{apt}/etc/sources.list.d",
        "Dir::State": f"{apt}/state",
        "Dir::State::status": f"{apt}/state/status",
    }
    lines = [f'{key} "{value}";' for key, value in settings.items()]
    return "\n".join(['APT::Architectures { "amd64"; };', *lines, ""])


def _index(source: DebSource, shop: Workshop, root: Path) -> None:
    listing = _capture(["apt-ftparchive", "packages", "pool"], root)
    (root / "Packages").write_bytes(listing)
    (root / "Packages.gz").write_bytes(gzip.compress(listing, mtime=0))
    about = {
        "Origin": "onprem-mlops",
        "Label": "onprem-mlops",
        "Suite": source.release,
        "Codename": source.release,
        "Version": _NUMBERS[source.release],
        "Architectures": "amd64",
        "Components": "main",
        "Description": "Debian packages that the nodes need",
    }
    options = [part for key, value in about.items() for part in ("-o", f"APT::FTPArchive::Release::{key}={value}")]
    release = _capture(["apt-ftparchive", *options, "release", "."], root)
    (root / "Release").write_bytes(release)
    key = signing_key(shop.folders.keys)
    signed = pysequoia.sign(key.signer(), release, mode=pysequoia.SignatureMode.CLEAR)
    (root / "InRelease").write_bytes(signed)
    (root / KEY_NAME).write_text(str(key.extract_certificate()))


def _capture(command: list[str], folder: Path) -> bytes:
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    if done.returncode != 0:
        raise CommandFailed(f"`{' '.join(command[:2])}` failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def signing_key(folder: Path) -> pysequoia.Tsk:
    """The store's own OpenPGP key, made on first use, readable by its owner only."""
    path = folder / "apt.pgp"
    with locked(folder / "apt.lock"):
        if not path.exists():
            folder.chmod(0o700)
            key = pysequoia.Tsk.generate(
                "onprem-mlops artifact store",
                profile=pysequoia.Profile.RFC4880,  # what gpgv of Debian 12 reads
                cipher_suite=pysequoia.CipherSuite.Cv25519,
            )
            write_atomically(path, bytes(key))
        return pysequoia.Tsk.from_bytes(path.read_bytes())


# --- root file systems


def rootfs(source: RootfsSource, shop: Workshop) -> Made:
    """A root file system with the listed packages as one uncompressed tar: unpacking speed matters, size does not."""
    prerequisites.require("mmdebstrap")
    (shop.work / "sources.list").write_text(_sources_list(shop, source.release))
    tar, listing = shop.work / "rootfs.tar", shop.work / "packages.txt"
    options = [f"--variant={source.variant}", f"--include={','.join(packages(shop, source.packages))}", "--format=tar"]
    options += ["--architectures=amd64", '--aptopt=Acquire::Retries "3"', '--aptopt=APT::Install-Recommends "false"']
    if not source.documentation:
        options += [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("man", "locale", "doc", "info")]
        options += ["--dpkgopt=path-include=/usr/share/doc/*/copyright"]
    removed = " ".join(f'"$1"{path}' for path in source.remove)
    hooks = [f'dpkg-query --admindir="$1/var/lib/dpkg" -W > {listing}', *([f"rm -rf {removed}"] if removed else [])]
    options += [f"--customize-hook={hook}" for hook in hooks]
    shop.run(
        ["mmdebstrap", *options, source.release, str(tar), str(shop.work / "sources.list")],
        env={"SOURCE_DATE_EPOCH": "946684800"},
    )
    return Made({"rootfs.tar": tar, "packages.txt": listing}, made_with="mmdebstrap")
