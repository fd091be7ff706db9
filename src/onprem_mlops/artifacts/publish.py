"""What the store offers to roles: where the mirror serves a file, and which reference an image has."""

from __future__ import annotations

from collections.abc import Iterable

from onprem_mlops.artifacts.manifest import TreeFile
from onprem_mlops.artifacts.store import Store
from onprem_mlops.site import Site
from onprem_mlops.steps import PublishedFile


def needed_by(site: Site) -> tuple[str, ...]:
    """Names of the artifacts that the roles which are on lay down, sorted."""
    return tuple(sorted({name for settings in site.role_settings.values() for name in settings.artifacts()}))


class StorePublisher:
    """The store as seen from one site."""

    def __init__(self, site: Site, store: Store | None = None) -> None:
        self._base = site.mirror_url
        self._store = store or Store()
        self._files: dict[tuple[str, str], PublishedFile] = {}
        self._trees: dict[tuple[str, ...], tuple[TreeFile, ...]] = {}

    def file(self, artifact: str, filename: str) -> PublishedFile:
        """One file. RequestError with what to do if the store does not hold it."""
        key = (artifact, filename)
        if key not in self._files:
            stored, path = self._store.file(artifact, filename), self._store.url_path(artifact, filename)
            self._files[key] = PublishedFile(
                f"{self._base}/{path}", str(path), stored.sha256, stored.size, self.version(artifact)
            )
        return self._files[key]

    def files(self, artifact: str) -> tuple[PublishedFile, ...]:
        """All files of an artifact that the mirror serves. RequestError if the store does not hold it."""
        return tuple(self.file(artifact, name) for name in self._store.manifest(artifact).published)

    def image(self, artifact: str) -> str:
        """An image's upstream reference."""
        return self._store.image(artifact)

    def version(self, artifact: str) -> str:
        """An artifact's version as it is in the store."""
        return self._store.manifest(artifact).version

    def tree(self, artifacts: Iterable[str]) -> tuple[TreeFile, ...]:
        """The mirror tree of these artifacts."""
        names = tuple(artifacts)
        if names not in self._trees:
            self._trees[names] = tuple(self._store.tree(names))
        return self._trees[names]
