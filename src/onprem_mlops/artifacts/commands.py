"""What `mlops mirror build|list|verify` do; each gives a typed result that can be written as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from onprem_mlops.artifacts.catalogue import Artifact
from onprem_mlops.artifacts.events import Listener, silent
from onprem_mlops.artifacts.manifest import ArtifactManifest, Problem
from onprem_mlops.artifacts.store import Store


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True)


class MirrorEntry(_Result):
    """One artifact of the catalogue and what the store holds of it."""

    name: str
    version: str
    licence: str
    homepage: str
    sources: tuple[str, ...]
    default: bool
    state: Literal["there", "missing", "other version"]
    stored_version: str | None = None
    stored_source: str | None = None
    image: str | None = None
    files: int = 0
    size: int = Field(default=0, description="bytes")


class MirrorList(_Result):
    """`mlops mirror list --json`."""

    store: str
    artifacts: tuple[MirrorEntry, ...]


class MirrorBuild(_Result):
    """`mlops mirror build --json`."""

    store: str
    seconds: float
    made: tuple[str, ...]
    freed: int = Field(description="bytes of build caches that were removed")
    artifacts: tuple[ArtifactManifest, ...]


class MirrorVerify(_Result):
    """`mlops mirror verify --json`."""

    store: str
    seconds: float
    checked: int = Field(description="files, each read in full")
    size: int = Field(description="bytes")
    problems: tuple[Problem, ...]


def mirror_build(
    names: Iterable[str] | None = None,
    *,
    store: Store | None = None,
    listener: Listener = silent,
    source: str = "auto",
    again: bool = False,
    keep_build_caches: bool = False,
) -> MirrorBuild:
    """Fill the store with `names` (None: all that is on by default).

    `again` makes the named artifacts even if they are there, e.g. `debs-bookworm` after a security update.
    Go's caches are removed once everything that is on by default is there, unless `keep_build_caches`.
    """
    store = store or Store()
    wanted = None if names is None else tuple(names)
    built = store.ensure(wanted, listener, source=source, again=wanted or () if again else ())
    complete = wanted is None or {a.name for a in store.catalogue.artifacts if a.default} <= {
        manifest.name for manifest in store.manifests()
    }
    drop = bool(built.made) and complete and not keep_build_caches
    freed = store.drop_build_caches() if drop else 0
    return MirrorBuild(
        store=str(store.folders.store), seconds=built.seconds, made=built.made, freed=freed, artifacts=built.manifests
    )


def mirror_list(*, store: Store | None = None) -> MirrorList:
    """The catalogue, and what the store holds of it."""
    store = store or Store()
    stored = {manifest.name: manifest for manifest in store.manifests()}
    entries = tuple(_entry(artifact, stored.get(artifact.name)) for artifact in store.catalogue.artifacts)
    return MirrorList(store=str(store.folders.store), artifacts=entries)


def _entry(artifact: Artifact, found: ArtifactManifest | None) -> MirrorEntry:
    same = found is not None and found.version == artifact.version
    return MirrorEntry(
        name=artifact.name,
        version=artifact.version,
        licence=artifact.licence,
        homepage=artifact.homepage,
        sources=tuple(source.kind for source in artifact.sources),
        default=artifact.default,
        state="missing" if found is None else "there" if same else "other version",
        stored_version=found.version if found else None,
        stored_source=found.source if found else None,
        image=str(artifact.reference()) if artifact.image else None,
        files=len(found.files) if found else 0,
        size=sum(file.size for file in found.files) if found else 0,
    )


def mirror_verify(*, store: Store | None = None) -> MirrorVerify:
    """Read every file of the store in full and compare it with its digest."""
    store = store or Store()
    begin = time.monotonic()
    files = {file.sha256: file.size for manifest in store.manifests() for file in manifest.files}
    problems = tuple(store.verify())
    return MirrorVerify(
        store=str(store.folders.store),
        seconds=round(time.monotonic() - begin, 3),
        checked=len(files),
        size=sum(files.values()),
        problems=problems,
    )
