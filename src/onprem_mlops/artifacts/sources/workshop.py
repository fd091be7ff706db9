"""What a source gets to work with, and what it hands back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onprem_mlops.artifacts.catalogue import Artifact, Catalogue
from onprem_mlops.artifacts.manifest import ArtifactManifest, StoredImage
from onprem_mlops.artifacts.processes import Processes


@dataclass(frozen=True)
class Folders:
    """Where things lie below the cache folder."""

    cache: Path

    @property
    def store(self) -> Path:
        """Blobs and manifests: what is kept."""
        return self.cache / "store"

    @property
    def build(self) -> Path:
        """Go's caches: speed up an interrupted build, dropped once the store is filled."""
        return self.cache / "build"

    @property
    def toolchains(self) -> Path:
        """Compilers fetched for the builds."""
        return self.cache / "toolchains"

    @property
    def logs(self) -> Path:
        """One log per artifact, of its last build."""
        return self.cache / "logs"

    @property
    def keys(self) -> Path:
        """The store's own signing key, readable by its owner only."""
        return self.cache / "keys"


@dataclass(frozen=True)
class Workshop:
    """One build of one artifact: an empty folder, a log, the inputs, and the means to run commands."""

    artifact: Artifact
    catalogue: Catalogue
    folders: Folders
    work: Path
    log: Path
    processes: Processes
    inputs: Mapping[str, ArtifactManifest] = field(default_factory=dict)
    blob: Callable[[str], Path] = Path
    before: ArtifactManifest | None = None
    """What the store has had of this artifact until now."""

    def run(self, command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
        """Run a command of this build; CommandFailed unless it exits with 0."""
        self.processes.run(command, self.log, cwd=cwd or self.work, env=env)

    def note(self, line: str) -> None:
        """Write a line to the log, among the commands."""
        with self.log.open("a") as log:
            log.write(f"{line}\n")

    def folder(self, name: str) -> Path:
        """A folder of that name in the work folder."""
        path = self.work / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def input(self, name: str) -> Path:
        """The blob of `<artifact>/<file>`; KeyError if there is no such input, a mistake in the catalogue."""
        artifact, _, file = name.partition("/")
        for stored in self.inputs[artifact].files:
            if stored.name == file:
                return self.blob(stored.sha256)
        raise KeyError(name)


@dataclass(frozen=True)
class Made:
    """What a source made: files by their name in the artifact, and where in the mirror tree they belong."""

    files: Mapping[str, Path]
    made_with: str = ""
    prefix: str | None = None
    images: tuple[StoredImage, ...] = ()
