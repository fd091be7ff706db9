"""Fetches artifacts of the run and unpacks them."""

from __future__ import annotations

import os
import shutil
import tempfile
import urllib.request
import zipfile
from pathlib import Path

from artifact_service import SECONDS, call


def fetch(name: str, folder: Path) -> None:
    """One artifact, unpacked into a folder."""
    found = call("GetSignedArtifactURL", name=name)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile() as archive:
        with urllib.request.urlopen(found.get("signedUrl") or found["signed_url"], timeout=SECONDS) as answer:
            shutil.copyfileobj(answer, archive)
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
    print(f"artifact {name} in {folder}")


def main() -> None:
    """The one that is named, or all."""
    folder, wanted = Path(os.environ["IN_PATH"]).expanduser().absolute(), os.environ["IN_NAME"]
    if wanted:
        fetch(wanted, folder)
    else:
        for one in call("ListArtifacts").get("artifacts", ()):
            fetch(one["name"], folder / one["name"])
    with open(os.environ["GITHUB_OUTPUT"], "a") as out:
        out.write(f"download-path={folder}\n")


main()
