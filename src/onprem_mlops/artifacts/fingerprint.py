"""What determines an artifact's content, as one digest: if it is the same, there is nothing to make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from ruamel.yaml import YAML

from onprem_mlops.artifacts.blobs import sha256_of
from onprem_mlops.artifacts.catalogue import (
    Artifact,
    Catalogue,
    CSource,
    Debian,
    DebSource,
    FrontendSource,
    GoSource,
    ModuleSource,
    PypiSource,
    RecipeSource,
    Source,
)
from onprem_mlops.artifacts.manifest import ArtifactManifest

# Raised when this code comes to make something else from the same catalogue.
_GENERATION = 1


def fingerprint(
    catalogue: Catalogue, artifact: Artifact, source: Source, inputs: Mapping[str, ArtifactManifest]
) -> str:
    """The fingerprint of `artifact` made from `source`, given what its inputs are.

    Neither prose (licence, homepage, notes) nor the other sources are part of it: a new download address does not
    throw away what was built.
    """
    content = {
        "generation": _GENERATION,
        "name": artifact.name,
        "version": artifact.version,
        "image": artifact.image,
        "source": _described(source),
        "data": _data(catalogue, source),
        "inputs": _inputs(source, inputs),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


_LATER = frozenset({"apart", "cgo", "components", "headers", "name", "own", "previous"})
"""Fields that sources got later. They count where they are used: what was built before them stays."""


def _described(source: Source) -> dict[str, object]:
    dumped: dict[str, object] = source.model_dump(mode="json")
    used: dict[str, object] = source.model_dump(mode="json", exclude_defaults=True)
    return {key: value for key, value in dumped.items() if key not in _LATER or key in used}


def _data(catalogue: Catalogue, source: Source) -> object:
    match source:
        case GoSource():
            return _files(catalogue.folder / "go" / source.module, ("go.mod", "go.sum", "*.go"))
        case CSource() if source.own:
            own = {name: sha256_of(catalogue.folder / name) for name in source.own}
            return own | _files(catalogue.folder / "go" / source.module, ("go.mod",))
        case ModuleSource() | CSource() | FrontendSource():
            return _files(catalogue.folder / "go" / source.module, ("go.mod",))
        case DebSource():
            lists = [_listed(catalogue, name) for name in (source.packages, *source.apart)]
            brought = _files(catalogue.folder / source.brought, ("*.deb",))
            return [*lists, brought] if source.apart or brought else lists[0]
        case Debian():
            return _listed(catalogue, source.packages)
        case PypiSource():
            return sha256_of(catalogue.folder / source.lock)
        case _:
            return None


def _listed(catalogue: Catalogue, name: str) -> list[str]:
    return sorted(YAML(typ="safe").load(catalogue.folder / name))


def _files(folder: Path, patterns: tuple[str, ...]) -> dict[str, str]:
    return {path.name: sha256_of(path) for pattern in patterns for path in sorted(folder.glob(pattern))}


def _inputs(source: Source, inputs: Mapping[str, ArtifactManifest]) -> dict[str, str]:
    """The digests of the very files that a recipe takes; the tools that put them together do not count."""
    if not isinstance(source, RecipeSource):
        return {}
    wanted = {*source.files.values(), *source.trees.values()}
    found = {
        f"{manifest.name}/{file.name}": file.sha256
        for manifest in inputs.values()
        for file in manifest.files
        if f"{manifest.name}/{file.name}" in wanted
    }
    if source.base:
        base = inputs[source.base]
        found[source.base] = base.images[0].digest if base.images else base.files[-1].sha256
    return found
