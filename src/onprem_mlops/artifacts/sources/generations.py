"""What a repository of Debian packages keeps of earlier fetches: the way back after an upgrade.

Debian's mirrors have one version of a package and forget the one before. Nodes that are pinned to that one still need
it: to go back, or to be joined by another node.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

from onprem_mlops.artifacts.blobs import sha256_of
from onprem_mlops.artifacts.manifest import StoredFile
from onprem_mlops.artifacts.sources.workshop import Workshop

FILE = "generations.json"
"""In the artifact, beside the index: the names of the packages of each fetch, the newest first."""
KEPT = 4


def keep(shop: Workshop, root: Path, listed: Collection[str]) -> None:
    """Add to the packages just fetched, in `root`/pool, those of earlier generations, and write down which is which.

    `listed`: names of the packages that were asked for, without what they need. A package of an earlier generation
    that the store has lost is left out: nobody has it any more.
    """
    pool = root / "pool"
    fetched = {deb.name for deb in pool.iterdir()}
    before = {PurePosixPath(file.name).name: file for file in shop.before.files} if shop.before else {}
    generations = following(_earlier(shop, before), fetched, listed)
    for name in sorted(set().union(*generations) - fetched):
        if blob := _whole(shop, before.get(name), name):
            shutil.copyfile(blob, pool / name)
    there = {deb.name for deb in pool.iterdir()}
    kept = [sorted(names & there) for names in generations]
    (root / FILE).write_text(json.dumps([names for names in kept if names], indent=1) + "\n")


def following(earlier: Sequence[set[str]], fetched: set[str], listed: Collection[str]) -> list[set[str]]:
    """The generations after a fetch, the newest first.

    It begins a new one if a listed package is new. What they need changes far more often (a library's security
    update): if that counted, a driver would be gone after a few weeks. It joins the newest.
    """
    known = set().union(*earlier)
    if not earlier or any(name.partition("_")[0] in listed for name in fetched - known):
        return [fetched, *earlier][:KEPT]
    return [earlier[0] | fetched, *earlier[1:]]


def _earlier(shop: Workshop, before: Mapping[str, StoredFile]) -> list[set[str]]:
    """Generations as the store has them. An archive of a time when they were not written down is one."""
    if FILE in before and (blob := _whole(shop, before[FILE], FILE)):
        return [set(names) for names in json.loads(blob.read_bytes())]
    debs = {name for name in before if name.endswith(".deb")}
    return [debs] if debs else []


def _whole(shop: Workshop, file: StoredFile | None, name: str) -> Path | None:
    """The file's blob, read in full: a damaged one would get a place in the index, with the damage's checksum."""
    blob = shop.blob(file.sha256) if file else None
    if file and blob and blob.is_file() and sha256_of(blob) == file.sha256:
        return blob
    shop.note(f"{name}: missing or damaged in the store, left out")
    return None
