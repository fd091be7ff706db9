"""What a role does on nodes: steps, removals, and the context that they receive. Pure: nothing here touches a node."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, Protocol, TypeVar

import jinja2

from onprem_mlops.errors import MlopsError
from onprem_mlops.site import Hidden, IssuedCertificate, Node, Site
from onprem_mlops.site.role import Certificate, Opening, RoleSettings

if TYPE_CHECKING:
    from onprem_mlops.artifacts.manifest import TreeFile

S = TypeVar("S", bound=RoleSettings)
StepFunction = Callable[..., Any]
Only = Literal["first", "any"]


class KnownLater(Exception):
    """A plan met a value that only an unexecuted step can give."""

    def __init__(self, step: str) -> None:
        super().__init__(f"known after {step}")
        self.step = step


class Pending:
    """The value of a step that a plan did not execute. Touching it raises KnownLater."""

    def __init__(self, step: str) -> None:
        object.__setattr__(self, "_step", step)

    def __getattribute__(self, name: str) -> NoReturn:
        raise KnownLater(object.__getattribute__(self, "_step"))

    def _touched(self, *_: object) -> NoReturn:
        raise KnownLater(object.__getattribute__(self, "_step"))

    __str__ = __bool__ = __iter__ = __getitem__ = __format__ = __len__ = __call__ = _touched


@dataclass(frozen=True, slots=True)
class Step:
    """One role function and where it runs."""

    name: str
    function: StepFunction
    on: tuple[str, ...]
    only: Only | None
    after: tuple[str, ...]
    order: int
    rolling: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the steps of the same role whose values the function takes."""
        return tuple(inspect.signature(self.function).parameters)[1:]


def step(
    *, on: str | tuple[str, ...], only: Only | None = None, after: tuple[str, ...] = (), rolling: bool = False
) -> Callable[[StepFunction], StepFunction]:
    """Declare a function of a role's `deploy.py` as a step.

    Args:
        on: group or groups of nodes, or "all".
        only: "first" for the group's first node, whose disk it needs; "any" for the first that can be reached, for
            what belongs to the cluster and no node. None for each.
        after: steps of the same role that must be done on all their nodes. Steps named by parameters are implied.
        rolling: one node at a time, in the order of the site file; the first is the canary. Once it has failed on one,
            it begins on no other.
    """
    return _mark("__step__", on, only, after, rolling=rolling)


def removal(*, on: str | tuple[str, ...]) -> Callable[[StepFunction], StepFunction]:
    """Declare a function of a role's `deploy.py` that takes the role off a node. Last declared runs first."""
    return _mark("__removal__", on, None, ())


def admission(*, on: str | tuple[str, ...]) -> Callable[[StepFunction], StepFunction]:
    """Declare a function of a role's `deploy.py` that refuses a node which cannot be laid down, by raising MlopsError.

    Every deploy and plan calls it on each of its nodes before it touches any, whichever roles it lays down. It may
    only read.
    """
    return _mark("__admission__", on, None, ())


def _mark(
    attribute: str, on: str | tuple[str, ...], only: Only | None, after: tuple[str, ...], *, rolling: bool = False
) -> Callable[[StepFunction], StepFunction]:
    groups = (on,) if isinstance(on, str) else on

    def mark(function: StepFunction) -> StepFunction:
        order = function.__code__.co_firstlineno
        setattr(function, attribute, Step(function.__name__, function, groups, only, after, order, rolling))
        return function

    return mark


def steps_of(
    module: object, attribute: Literal["__step__", "__removal__", "__admission__"] = "__step__"
) -> tuple[Step, ...]:
    """The steps (or removals, or admissions) that a role's `deploy.py` declares, in the order written."""
    found = [getattr(value, attribute) for value in vars(module).values() if hasattr(value, attribute)]
    return tuple(sorted(found, key=lambda one: one.order))


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file of the artifact store as the mirror serves it."""

    url: str
    path: str
    """Below the mirror's root, e.g. `files/kubernetes/v1.36.3/kubelet`."""
    sha256: str
    size: int
    version: str

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.path.rpartition("/")[2]


class Published(Protocol):
    """What the artifact store offers to roles."""

    def file(self, artifact: str, filename: str) -> PublishedFile: ...

    def files(self, artifact: str) -> tuple[PublishedFile, ...]: ...

    def image(self, artifact: str) -> str: ...

    def version(self, artifact: str) -> str: ...

    def tree(self, artifacts: Iterable[str]) -> tuple[TreeFile, ...]: ...


class Material(Protocol):
    """Secrets and certificates of the site."""

    def secret(self, role: str, name: str) -> Hidden: ...

    def certificate(self, role: str, node: Node, wanted: Certificate) -> IssuedCertificate: ...

    @property
    def authority_pem(self) -> str: ...


@dataclass(frozen=True)
class Context(Generic[S]):
    """What a step knows: the site, its node, its settings, and what the site holds for it."""

    site: Site
    node: Node
    role: str
    settings: S
    folder: Path
    artifacts: Published
    material: Material
    planning: bool
    site_openings: Mapping[str, tuple[Opening, ...]] = field(repr=False)
    names: Mapping[str, tuple[IPv4Address, ...]] = field(repr=False)
    state: Path = field(repr=False)
    """The site's state folder on the controller (kubeconfig and the like)."""
    remove_data: bool = False
    """Only in removals: whether the person agreed to lose the data that the role named."""

    @property
    def openings(self) -> tuple[Opening, ...]:
        """What all roles together open on this node."""
        return self.site_openings[self.node.name]

    @property
    def authority_pem(self) -> str:
        """The certificate of the site's authority."""
        return self.material.authority_pem

    def nodes(self, group: str) -> tuple[Node, ...]:
        """The nodes of a group, in the order of the site file."""
        return self.site.in_group(group)

    def secret(self, name: str) -> Hidden:
        """A secret that this role's settings declare."""
        return self.material.secret(self.role, name)

    def secret_of(self, role: str, name: str) -> Hidden:
        """A secret that another role declares for this one, such as the password of its database account."""
        return self.material.secret(role, name)

    def certificate(self, name: str) -> IssuedCertificate:
        """A certificate that this role's settings declare for this node, renewed if it was due."""
        wanted = {one.name: one for one in self.settings.certificates(self.site, self.node)}
        return self.material.certificate(self.role, self.node, wanted[name])

    def file(self, artifact: str, filename: str) -> PublishedFile:
        """Where the mirror serves a file of the store, and its checksum."""
        return self.artifacts.file(artifact, filename)

    def files(self, artifact: str) -> tuple[PublishedFile, ...]:
        """All files of an artifact that the mirror serves, such as the wheels of a wheelhouse."""
        return self.artifacts.files(artifact)

    def image(self, artifact: str) -> str:
        """The upstream reference of an image, e.g. `registry.k8s.io/pause:3.10.1`."""
        return self.artifacts.image(artifact)

    def tree(self) -> tuple[TreeFile, ...]:
        """All files that the mirror serves: what the roles that are on lay down."""
        named = {name for settings in self.site.role_settings.values() for name in settings.artifacts()}
        return self.artifacts.tree(sorted(named))

    def package_key(self, codename: str) -> str:
        """The public key that the store signs its packages for a Debian release with; MlopsError if it has none."""
        path = f"apt/{codename}/onprem-mlops.asc"
        for file in self.tree():
            if str(file.path) == path:
                return file.source.read_text()
        raise MlopsError(
            f"the artifact store has no packages for Debian {codename}, which {self.node.name} runs",
            "Name the release in settings.mirror.debian, then build them with ./mlops mirror build.",
        )

    def package_versions(self, codename: str) -> Mapping[str, str]:
        """Package → version that the mirror serves for a Debian release; empty if it serves none."""
        return {name: versions[-1] for name, versions in self.package_offers(codename).items()}

    def package_offers(self, archive: str) -> Mapping[str, tuple[str, ...]]:
        """Package → all versions that the mirror serves in an apt archive, such as `bookworm-gpu`."""
        return package_offers(self.tree(), archive)

    def settings_of(self, role: str) -> Any:
        """Another role's settings: what a role declares is open to all, its folder is not."""
        return self.site.settings(role)

    def render(self, template: str, **values: Any) -> str:
        """Render a template of this role; `site`, `node` and `settings` are always there.

        It may include those that all roles share, in `onprem_mlops/templates`.
        """
        return self._templates.get_template(template).render(
            site=self.site, node=self.node, settings=self.settings, **values
        )

    @cached_property
    def _templates(self) -> jinja2.Environment:
        return _environment(self.folder / "templates")


def package_offers(tree: Iterable[TreeFile], archive: str) -> Mapping[str, tuple[str, ...]]:
    """Package → all versions in an apt archive of a tree of the mirror's; empty if it has none of that name."""
    path = f"apt/{archive}/Packages"
    return next((_versions(file.source) for file in tree if str(file.path) == path), {})


@cache
def _versions(index: Path) -> Mapping[str, tuple[str, ...]]:
    """Package → versions in an index of apt's. Read once a run: a tree's files never change."""
    found: dict[str, tuple[str, ...]] = {}
    name = ""
    for line in index.read_text().splitlines():
        field_name, _, value = line.partition(": ")
        if field_name == "Package":
            name = value
        elif field_name == "Version":
            found[name] = (*found.get(name, ()), value)
    return found


_SHARED_TEMPLATES = Path(__file__).with_name("templates")
_environments: dict[Path, jinja2.Environment] = {}


def _environment(folder: Path) -> jinja2.Environment:
    # One environment a role, not a node: templates are compiled once even for 500 nodes.
    if folder not in _environments:
        _environments[folder] = jinja2.Environment(
            loader=jinja2.FileSystemLoader((folder, _SHARED_TEMPLATES)),
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,
        )
    return _environments[folder]
