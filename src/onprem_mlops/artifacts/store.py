"""The content-addressed store of everything that is laid down."""

from __future__ import annotations

import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from onprem_mlops.artifacts.blobs import Blobs
from onprem_mlops.artifacts.catalogue import Artifact, Catalogue
from onprem_mlops.artifacts.events import (
    BuildEvent,
    Damaged,
    Failed,
    Finished,
    Listener,
    Planned,
    Started,
    Waiting,
    silent,
)
from onprem_mlops.artifacts.fingerprint import fingerprint
from onprem_mlops.artifacts.manifest import ArtifactManifest, Problem, StoredFile, TreeFile
from onprem_mlops.artifacts.processes import Processes
from onprem_mlops.artifacts.schedule import Schedule, work_through
from onprem_mlops.artifacts.sources import choice
from onprem_mlops.artifacts.sources.workshop import Folders, Made, Workshop
from onprem_mlops.atomic import write_atomically
from onprem_mlops.errors import Interrupted, MlopsError, RequestError
from onprem_mlops.locks import is_locked, locked
from onprem_mlops.paths import cache_dir

_LISTEN_SECONDS = 0.1


class BuildFailed(MlopsError):
    """One or more artifacts could not be made; those that could are in the store."""


@dataclass(frozen=True)
class Built:
    """What is in the store now: all that was asked for, which of it was made just now, and how long that took."""

    manifests: tuple[ArtifactManifest, ...]
    made: tuple[str, ...]
    seconds: float


@dataclass
class _Run:
    """One call of `ensure`: what is there, growing while artifacts are made."""

    listener: Listener
    asked: str
    again: frozenset[str]
    began: datetime
    processes: Processes = field(default_factory=Processes)
    there: dict[str, ArtifactManifest] = field(default_factory=dict)
    answers: Mapping[str, str] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, event: BuildEvent) -> None:
        """Listeners hear one event at a time, whichever thread it comes from."""
        with self._lock:
            self.listener(event)


class Store:
    """Artifacts by name; their files by content. `root`: the cache folder, by default the user's own."""

    def __init__(self, root: Path | None = None, catalogue: Catalogue | None = None) -> None:
        self.folders = Folders((root or cache_dir()).absolute())
        self.catalogue = catalogue or Catalogue.load()
        self.blobs = Blobs(self.folders.store)

    # --- what is there

    def manifest(self, name: str) -> ArtifactManifest:
        """What the store holds of `name`; RequestError if it was never made."""
        self.catalogue.artifact(name)
        if found := self._read(name):
            return found
        raise RequestError(f"{name} is not in the artifact store", f"make it: mlops mirror build {name}")

    def manifests(self) -> tuple[ArtifactManifest, ...]:
        """All that the store holds of the catalogue, by the catalogue's order."""
        return tuple(found for a in self.catalogue.artifacts if (found := self._read(a.name)))

    def file(self, artifact: str, filename: str) -> StoredFile:
        """One file of an artifact, with the path of its blob."""
        manifest = self.manifest(artifact)
        for file in manifest.files:
            if file.name == filename:
                return file
        known = ", ".join(file.name for file in manifest.files[:20])
        raise RequestError(f"{artifact} has no file {filename!r}", f"it has {known}")

    def image(self, artifact: str) -> str:
        """The reference under which the artifact's image is served, e.g. `registry.k8s.io/pause:3.10.2`."""
        images = self.manifest(artifact).images
        if not images:
            raise RequestError(f"{artifact} is no image", "`mlops mirror list` shows which are")
        return images[0].reference

    def url_path(self, artifact: str, filename: str) -> PurePosixPath:
        """Where the mirror serves a file, e.g. `files/etcd/3.6.8/etcd`."""
        manifest = self.manifest(artifact)
        if filename not in manifest.published:
            raise RequestError(f"{artifact}: the mirror does not serve {filename!r}", "see `publish` in the catalogue")
        return PurePosixPath(manifest.prefix) / filename

    def tree(self, names: Iterable[str] | None = None) -> Iterator[TreeFile]:
        """What the mirror serves of `names` (None: of all that is in the store), sorted by path, each path once."""
        manifests = self.manifests() if names is None else tuple(self.manifest(name) for name in names)
        files = {
            PurePosixPath(manifest.prefix) / file.name: file
            for manifest in manifests
            for file in manifest.files
            if file.name in set(manifest.published)
        }
        for path in sorted(files):
            file = files[path]
            yield TreeFile(path=path, source=file.path, sha256=file.sha256, size=file.size)

    def _manifest_path(self, name: str) -> Path:
        return self.folders.store / "manifests" / f"{name}.json"

    def _read(self, name: str) -> ArtifactManifest | None:
        try:
            found = ArtifactManifest.model_validate_json(self._manifest_path(name).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None  # never made, or written by another version of this program: made again
        files = tuple(file.model_copy(update={"path": self.blobs.path(file.sha256)}) for file in found.files)
        return found.model_copy(update={"files": files})

    # --- filling

    def ensure(
        self,
        names: Iterable[str] | None = None,
        listener: Listener = silent,
        *,
        source: str = "auto",
        again: Iterable[str] = (),
    ) -> Built:
        """Make what is missing of `names` (None: all that is on by default) and of what they are made from.

        `source`: a kind of source, or `auto`, the first that is reachable. `again`: make these even if they are
        there (Debian packages after a security update). Raises BuildFailed, or Interrupted after Ctrl-C; both
        keep what was made.
        """
        begin = time.monotonic()
        artifacts = self.catalogue.closure(names)
        run = _Run(listener, source, frozenset(again), datetime.now(UTC))
        for name in run.again:
            self.catalogue.artifact(name)
        stale = self._stale(artifacts, run)
        schedule = Schedule(stale, lambda artifact: artifact.sources[-1].kind in choice.HEAVY)
        run.tell(Planned(tuple(run.there), schedule.order))
        if stale:
            self.blobs.drop_damaged()
            run.answers = choice.probe(stale) if source == "auto" else {}
            self._make_all(schedule, run)
        manifests = tuple(run.there[artifact.name] for artifact in artifacts)
        return Built(manifests, tuple(run.made), time.monotonic() - begin)

    def missing(self, names: Iterable[str] | None = None) -> tuple[str, ...]:
        """Which of `names` (None: all that is on by default), and of what they are made from, `ensure` would make."""
        run = _Run(silent, "auto", frozenset(), datetime.now(UTC))
        return tuple(artifact.name for artifact in self._stale(self.catalogue.closure(names), run))

    def _stale(self, artifacts: Iterable[Artifact], run: _Run) -> list[Artifact]:
        stale: list[Artifact] = []
        for artifact in artifacts:
            found = None if artifact.name in run.again else self._current(artifact, run)
            if found is None:
                stale.append(artifact)
            else:
                run.there[artifact.name] = found
        return stale

    def _current(self, artifact: Artifact, run: _Run, *, tell: bool = True) -> ArtifactManifest | None:
        """The artifact's manifest if it is what the catalogue asks for and all its files are as they were written."""
        if any(name not in run.there for name in artifact.ingredients()):
            return None
        found = self._read(artifact.name)
        if found is None or not self._matches(artifact, found, run):
            return None
        for file in found.files:
            if not self.blobs.intact(file.sha256, file.size):
                if tell:
                    run.tell(Damaged(artifact.name, file.name))
                return None
        return found

    def _matches(self, artifact: Artifact, found: ArtifactManifest, run: _Run) -> bool:
        if run.asked != "auto" and len(artifact.sources) > 1 and found.source != run.asked:
            return False
        for source in artifact.sources:
            if source.kind == found.source:
                return fingerprint(self.catalogue, artifact, source, run.there) == found.fingerprint
        return False

    def _make_all(self, schedule: Schedule, run: _Run) -> None:
        try:
            failures = self._interruptible(schedule, run)
        except KeyboardInterrupt:
            raise Interrupted("stopped; what was made is kept", "run the same command again: it goes on") from None
        if failures:
            raise _explained(failures)

    def _interruptible(self, schedule: Schedule, run: _Run) -> Mapping[str, BaseException]:
        """Ctrl-C reaches the main thread only: it ends the commands, on which the other threads then give up."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="artifacts") as pool:
            working = pool.submit(work_through, schedule, lambda artifact: self._make(artifact, run))
            try:
                while not working.done():
                    wait([working], timeout=_LISTEN_SECONDS)
            except BaseException:
                run.processes.stop()
                raise
            return working.result()

    def _make(self, artifact: Artifact, run: _Run) -> None:
        begin = time.monotonic()
        lock = self.folders.store / "locks" / artifact.name
        try:
            with locked(lock, on_wait=lambda: run.tell(Waiting(artifact.name))):
                found = self._made_by_another(artifact, run)
                reused = found is not None
                manifest = found or self._make_now(artifact, run, begin)
        except Interrupted:
            raise
        except Exception as error:
            run.tell(Failed(artifact.name, time.monotonic() - begin, str(error)))
            raise
        run.there[artifact.name] = manifest
        if not reused:
            run.made.append(artifact.name)
        size = sum(file.size for file in manifest.files)
        seconds = time.monotonic() - begin
        run.tell(Finished(artifact.name, manifest.version, manifest.source, seconds, size, reused))

    def _made_by_another(self, artifact: Artifact, run: _Run) -> ArtifactManifest | None:
        """What another run made while this one waited for the lock."""
        found = self._current(artifact, run, tell=False)
        if found and artifact.name in run.again and datetime.fromisoformat(found.made_at) < run.began:
            return None
        return found

    def _make_now(self, artifact: Artifact, run: _Run, begin: float) -> ArtifactManifest:
        source, why = choice.choose(artifact, run.asked, run.answers)
        log = self.folders.logs / f"{artifact.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"{artifact.name} {artifact.version} from {source.kind}: {why}\n")
        run.tell(Started(artifact.name, artifact.version, source.kind, why, log))
        work = self._empty_work_folder(artifact.name)
        try:
            shop = Workshop(
                artifact,
                self.catalogue,
                self.folders,
                work,
                log,
                run.processes,
                dict(run.there),
                self.blobs.path,
                self._read(artifact.name),
            )
            made = choice.produce(source, shop)
            manifest = self._take(artifact, made).model_copy(
                update={
                    "source": source.kind,
                    "why": why,
                    "fingerprint": fingerprint(self.catalogue, artifact, source, run.there),
                    "seconds": round(time.monotonic() - begin, 3),
                }
            )
            # Last, and at once: until now nothing says that the artifact is there.
            write_atomically(self._manifest_path(artifact.name), manifest.model_dump_json(indent=1).encode())
        finally:
            _remove(work)
        return manifest

    def _take(self, artifact: Artifact, made: Made) -> ArtifactManifest:
        files: list[StoredFile] = []
        for name, path in sorted(made.files.items()):
            digest, size = self.blobs.add(path)
            files.append(StoredFile(name=name, sha256=digest, size=size, path=self.blobs.path(digest)))
        return ArtifactManifest(
            name=artifact.name,
            version=artifact.version,
            source="",
            fingerprint="",
            made_with=made.made_with,
            made_at=datetime.now(UTC).isoformat(timespec="microseconds"),
            seconds=0,
            prefix=made.prefix or f"files/{artifact.name}/{artifact.version}",
            published=_published(artifact, files),
            files=tuple(files),
            images=made.images,
        )

    def _empty_work_folder(self, name: str) -> Path:
        """A new folder; those of earlier runs that were killed are removed, which the artifact's lock allows."""
        parent = self.folders.cache / "work"
        parent.mkdir(parents=True, exist_ok=True)
        for old in parent.glob(f"{name}@*"):
            _remove(old)
        return Path(tempfile.mkdtemp(dir=parent, prefix=f"{name}@"))

    # --- care

    def verify(self) -> Iterator[Problem]:
        """Read every file in full. A damaged one is named and removed, so that the next build makes it again."""
        verdicts: dict[str, str] = {}
        for manifest in self.manifests():
            for file in manifest.files:
                if file.sha256 not in verdicts:
                    verdicts[file.sha256] = self._verdict(file)
                if what := verdicts[file.sha256]:
                    yield Problem(artifact=manifest.name, file=file.name, what=what)

    def _verdict(self, file: StoredFile) -> str:
        if not file.path.exists():
            return "missing"
        if self.blobs.verified(file.sha256):
            return ""
        self.blobs.drop(file.sha256)
        return "damaged: its content is not what was put there; removed"

    def drop_build_caches(self) -> int:
        """Remove Go's caches (11 GB after a full build); gives the bytes that were freed.

        While another process makes something they stay: it may be reading them.
        """
        if any(is_locked(lock) for lock in (self.folders.store / "locks").glob("*")):
            return 0
        freed = sum(path.lstat().st_size for path in self.folders.build.rglob("*") if path.is_file())
        _remove(self.folders.build)
        return freed


def _published(artifact: Artifact, files: Iterable[StoredFile]) -> tuple[str, ...]:
    names = tuple(file.name for file in files)
    if isinstance(artifact.publish, bool):
        return names if artifact.publish else ()
    if unknown := set(artifact.publish) - set(names):
        raise RequestError(f"{artifact.name}: publish names {', '.join(sorted(unknown))}, which it does not have")
    return tuple(artifact.publish)


def _explained(failures: Mapping[str, BaseException]) -> MlopsError:
    interrupted = [error for error in failures.values() if isinstance(error, Interrupted)]
    if interrupted:
        return interrupted[0]
    parts = [f"{name}: {getattr(error, 'message', repr(error))}" for name, error in failures.items()]
    advice = [found for error in failures.values() if (found := getattr(error, "advice", ""))]
    return BuildFailed("\n".join(parts), "\n".join(advice) or "run it again: what was made is kept")


def _remove(folder: Path) -> None:
    """Remove a folder, also where Go's module cache or a build made parts of it read-only."""

    def unlock(function: Callable[..., object], path: str, _: object) -> None:
        parent = Path(path).parent
        try:
            parent.chmod(parent.stat().st_mode | stat.S_IRWXU)
            Path(path).chmod(stat.S_IRWXU)
            function(path)
        except OSError:
            return

    if folder.exists() or folder.is_symlink():
        shutil.rmtree(folder, onerror=unlock)
