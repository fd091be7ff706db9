"""Packs what the workflow names and hands it to Gitea."""

from __future__ import annotations

import glob
import hashlib
import os
import tempfile
import urllib.request
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from artifact_service import SECONDS, call

BLOCK = 8 << 20


def matching(pattern: str) -> set[Path]:
    """Files that a pattern names; a folder means all that is in it."""
    found: set[Path] = set()
    for name in glob.glob(os.path.expanduser(pattern), recursive=True, include_hidden=False):
        path = Path(name).absolute()
        found |= {one for one in path.rglob("*") if one.is_file()} if path.is_dir() else {path}
    return found


def chosen() -> list[Path]:
    """All files of the artifact."""
    found: set[Path] = set()
    for line in (line.strip() for line in os.environ["IN_PATH"].splitlines()):
        if line.startswith("!"):
            found -= matching(line[1:].strip())
        elif line:
            found |= matching(line)
    return sorted(found)


def send(url: str, archive: BinaryIO, size: int) -> None:
    """The archive in blocks, then their order."""
    names = []
    for number in range(max(1, -(-size // BLOCK))):
        names.append(f"{number:08d}")
        put(f"{url}&comp=block&blockid={names[-1]}", archive.read(BLOCK))
    order = "".join(f"<Latest>{name}</Latest>" for name in names)
    put(f"{url}&comp=blocklist", f'<?xml version="1.0"?><BlockList>{order}</BlockList>'.encode())


def put(url: str, data: bytes) -> None:
    """One request of an upload."""
    request = urllib.request.Request(url, data, {"Content-Type": "application/octet-stream"}, method="PUT")
    urllib.request.urlopen(request, timeout=SECONDS).close()


def main() -> None:
    """Upload, or do what the workflow wants where there is nothing."""
    files, name = chosen(), os.environ["IN_NAME"]
    if not files:
        said = f"no files at {os.environ['IN_PATH'].strip()}"
        if os.environ["IN_NONE"] == "error":
            raise SystemExit(said)
        if os.environ["IN_NONE"] == "warn":
            print(f"::warning::{said}")
        return
    root = Path(os.path.commonpath([file.parent for file in files]))
    with tempfile.TemporaryFile() as archive:
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for file in files:
                packed.write(file, file.relative_to(root))
        size = archive.tell()
        archive.seek(0)
        digest = hashlib.file_digest(archive, "sha256").hexdigest()
        archive.seek(0)
        more = {}
        if int(os.environ["IN_DAYS"] or 0):
            until = datetime.now(UTC) + timedelta(days=int(os.environ["IN_DAYS"]), hours=1)
            more["expires_at"] = until.strftime("%Y-%m-%dT%H:%M:%SZ")
        made = call("CreateArtifact", name=name, version=4, **more)
        send(made.get("signedUploadUrl") or made["signed_upload_url"], archive, size)
    done = call("FinalizeArtifact", name=name, size=str(size), hash=f"sha256:{digest}")
    number = done.get("artifactId") or done.get("artifact_id")
    with open(os.environ["GITHUB_OUTPUT"], "a") as out:
        out.write(f"artifact-id={number}\n")
    print(f"artifact {name}: {len(files)} files, {size} bytes")


main()
