"""Files as their project publishes them, over HTTP(S), checked before they are taken."""

from __future__ import annotations

import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from onprem_mlops.artifacts.blobs import sha256_of
from onprem_mlops.artifacts.catalogue import Download, UrlSource
from onprem_mlops.artifacts.sources.workshop import Made, Workshop
from onprem_mlops.errors import MlopsError

_TRIES = 3
_TIMEOUT_SECONDS = 60
_PROBE_SECONDS = 3


def fetch(source: UrlSource, shop: Workshop) -> Made:
    """Download every file of `source`; MlopsError where one is not what its checksum says."""
    files: dict[str, Path] = {}
    for wanted in source.files:
        archive = _download(wanted, shop)
        if wanted.members:
            files |= _extract(archive, wanted, shop)
        else:
            archive.chmod(0o755 if wanted.executable else 0o644)
            files[wanted.name or archive.name] = archive
    return Made(files, made_with="download")


def address(wanted: Download, version: str) -> str:
    """The URL of one file at this version."""
    return wanted.url.replace("{version}", version)


def reachable(url: str) -> str:
    """Empty if `url` answers within three seconds; else why not."""
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        return "" if error.code == 401 else f"answers {error.code}"  # a registry that wants a token is there
    except (OSError, HTTPException, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__


def _download(wanted: Download, shop: Workshop) -> Path:
    url = address(wanted, shop.artifact.version)
    expected = wanted.sha256 or _published_checksum(wanted, url, shop)
    target = shop.folder("download") / url.rsplit("/", 1)[-1]
    _retrieve(url, target, shop)
    actual = sha256_of(target)
    if actual != expected:
        raise MlopsError(
            f"{url}: sha256 is {actual}, expected {expected}",
            "the file was changed on its way or replaced by its publisher: find out which before going on",
        )
    return target


def _published_checksum(wanted: Download, url: str, shop: Workshop) -> str:
    assert wanted.sha256_url is not None
    checksums = shop.folder("download") / "checksums"
    _retrieve(wanted.sha256_url.replace("{version}", shop.artifact.version), checksums, shop)
    return checksum_in(checksums.read_text(errors="replace"), url.rsplit("/", 1)[-1])


def checksum_in(text: str, name: str) -> str:
    """The sha256 of `name` in a checksum file: the line that names it, or the only checksum there is."""
    found = [
        (match[1].lower(), line) for line in text.splitlines() if (match := re.search(r"\b([0-9A-Fa-f]{64})\b", line))
    ]
    named = [digest for digest, line in found if name in line.split() or f"*{name}" in line.split()]
    if len(named) == 1:
        return named[0]
    if len(found) == 1:
        return found[0][0]
    raise MlopsError(f"the checksum file does not name {name}", "pin its sha256 in the catalogue")


def _retrieve(url: str, target: Path, shop: Workshop) -> None:
    for attempt in range(1, _TRIES + 1):
        with shop.log.open("a") as log:
            log.write(f"GET {url}\n")
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer, target.open("wb") as out:
                shutil.copyfileobj(answer, out)
            return
        except (OSError, HTTPException) as error:
            if attempt == _TRIES:
                raise MlopsError(
                    f"{url}: {error}", "see that the address is reachable, or choose another source"
                ) from error
            time.sleep(attempt)


def _extract(archive: Path, wanted: Download, shop: Workshop) -> dict[str, Path]:
    folder = shop.folder("extracted")
    files: dict[str, Path] = {}
    with tarfile.open(archive) as tar:
        for name, inside in wanted.members.items():
            path = inside.replace("{version}", shop.artifact.version)
            try:
                member = tar.getmember(path)
            except KeyError:
                raise MlopsError(f"{archive.name}: has no {path}", "correct `members` in the catalogue") from None
            stream = tar.extractfile(member)
            if stream is None:
                raise MlopsError(f"{archive.name}: {path} is no file", "correct `members` in the catalogue")
            files[name] = folder / name
            files[name].parent.mkdir(parents=True, exist_ok=True)
            with files[name].open("wb") as out:
                shutil.copyfileobj(stream, out)
            files[name].chmod(member.mode & 0o777)
    return files
