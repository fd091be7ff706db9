"""Steps of roles without nodes: what a node is comes as data, what the step would do goes out as data.

A case is one YAML file: which step on which node, the facts of the node, and what must come of it. The step runs as in
a plan. After it, it runs again on a node where everything that it wrote is there, and must do nothing; and once more
for each file below `restarts` or `reloads`, changed since the services started, which must restart or reload the one
named beside it.

On the second run a reading command that the case does not speak of finds all done, so a wrong `unless` is not noticed
here. The second deploy of `tests/lab` notices it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from pyinfra.context import ctx_host
from ruamel.yaml import YAML

from onprem_mlops.artifacts.manifest import TreeFile
from onprem_mlops.engine.facts import (
    File,
    FileState,
    FileText,
    NewestChange,
    Packages,
    Probe,
    Probed,
    Unit,
    UnitState,
)
from onprem_mlops.engine.operation import RUN, Command, Outcome
from onprem_mlops.engine.operations.kubectl import Answer, ApiObject
from onprem_mlops.engine.operations.network import ruleset_text
from onprem_mlops.engine.operations.rest import Answer as RestAnswer
from onprem_mlops.engine.operations.rest import Answers
from onprem_mlops.errors import MlopsError
from onprem_mlops.events import Diff
from onprem_mlops.paths import REPOSITORY
from onprem_mlops.plan import deploy_module
from onprem_mlops.site import Hidden, IssuedCertificate, Node, Site, load_site
from onprem_mlops.site.role import Certificate, find_roles
from onprem_mlops.site.secrets import declared
from onprem_mlops.steps import Context, KnownLater, PublishedFile, steps_of

ABSENT = FileState("absent")
_STARTED = 1_000_000.0


@dataclass
class Change:
    """An operation that would change something: its purpose, its commands, and the files it would write."""

    purpose: str
    commands: tuple[str, ...]
    diffs: tuple[Diff, ...]


@dataclass
class FakeNode:
    """A node that is data. `probes` maps a part of a reading command to its output, or to its exit status."""

    texts: dict[str, str] = field(default_factory=dict)
    states: dict[str, FileState] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    units: dict[str, UnitState] = field(default_factory=dict)
    probes: dict[str, str | int] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)
    """What the Kubernetes API, or a service's own, answers, by path; other paths are not found."""
    changed: str = ""
    """The file that changed after the services had started."""
    settled: bool = False
    """Whether a check that no case speaks of finds everything done."""
    name: str = "node"
    state: object = field(default_factory=type("State", (), {}))
    """Of the run: what goes on between its nodes is kept by it."""
    connector_data: dict[str, Any] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.connector_data[RUN] = self

    # --- what pyinfra's host offers

    def get_fact(self, kind: type[Any], **arguments: Any) -> Any:
        """The fact, from the data; what no case speaks of is absent."""
        readers: Mapping[type[Any], Callable[..., Any]] = {
            File: lambda path: self.states.get(path, ABSENT),
            FileText: lambda path: self.texts.get(path),
            Packages: lambda: self.packages,
            Unit: lambda unit: self.units.get(unit, Unit.default()),
            NewestChange: lambda paths: _STARTED + (1 if self.changed in paths else -1),
            Probe: self._probe,
            Answers: lambda api, paths: {str(n): self._answer(path) for n, path in enumerate(paths)},
            ApiObject: lambda path: Answer(200, self.objects[path]) if path in self.objects else Answer(404, {}),
        }
        return readers[kind](**arguments)

    def _answer(self, path: str) -> RestAnswer:
        return RestAnswer(200, self.objects[path]) if path in self.objects else RestAnswer(404)

    def _probe(self, command: str) -> Probed:
        known = [part for part in self.probes if part in command]
        if not known:
            return Probed(0 if self.settled else 1, "")
        answer = self.probes[max(known, key=len)]
        return Probed(answer, "") if isinstance(answer, int) else Probed(0, answer.rstrip("\n"))

    # --- what an operation's runner offers

    def executing(self, command: Command) -> None:
        raise AssertionError("a plan executes nothing")

    def perform(
        self,
        operation: Callable[..., Any],
        generator: Callable[..., Iterator[Command]],
        purpose: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Outcome:
        """Record what the operation would do, and note the files that it would write."""
        commands = list(generator(*args, **kwargs))
        if commands:
            diffs = tuple(one.diff for one in commands if one.diff is not None)
            self.changes.append(Change(purpose, tuple(str(one) for one in commands), diffs))
            self.texts |= {diff.path: diff.after for diff in diffs if diff.after is not None}
        self._note(generator.__name__, args, kwargs)
        return Outcome(bool(commands))

    def _note(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What the node is like once the operation is done, for the second run."""
        note = getattr(self, f"_after_{name}", None)
        if note is not None:
            note(*args, **kwargs)

    def _after_content(
        self, path: str, text: str | Hidden, mode: str = "644", owner: str = "root", group: str = "root", **_: Any
    ) -> None:
        self._write(path, text.reveal() if isinstance(text, Hidden) else text, mode, owner, group)

    def _after_directory(self, path: str, mode: str = "755", owner: str = "root", group: str = "root") -> None:
        self.states[path] = FileState("directory", mode, owner, group)

    def _after_link(self, path: str, target: str) -> None:
        self.states[path] = FileState("link", target=target)

    def _after_absent(self, *paths: str, **_: Any) -> None:
        for path in paths:
            self.states.pop(path, None)

    def _after_set_aside(self, *paths: str) -> None:
        for path in paths:
            self.states.pop(path, None)

    def _after_packages(self, *names: str) -> None:
        self.packages |= dict.fromkeys(names, "1")

    def _after_held(self, *names: str) -> None:
        self.packages |= {f"held:{name}": "1" for name in names if name in self.packages}

    def _after_pinned(self, versions: Mapping[str, str]) -> None:
        self.packages |= {**versions, **{f"held:{name}": "1" for name in versions}}

    def _after_service(self, unit: str, **_: Any) -> None:
        self.units[unit] = UnitState("loaded", "active", "enabled", False, _STARTED)

    def _after_sshd(self, path: str, text: str) -> None:
        self._write(path, text, "600", "root", "root")

    def _after_ruleset(self, path: str, table: str, body: str) -> None:
        self._write(path, ruleset_text(table, body), "600", "root", "root")
        self.probes[f"nft -s list table inet {table}"] = hashlib.sha256(body.encode()).hexdigest()

    def _after_certificate(self, chain: str, key: str, issued: IssuedCertificate, *, owner: str) -> None:
        self._write(chain, issued.chain_pem, "644", "root", "root")
        self._write(key, issued.key_pem.reveal(), "400", owner, "root")

    def _after_download(self, path: str, source: PublishedFile, *, authority: str, mode: str = "755") -> None:
        self.states[path] = FileState("file", mode, "root", "root", source.size, source.sha256)

    def _after_installed(self, path: str, source: PublishedFile, **_: Any) -> None:
        self.states[path] = FileState("file", "755", sha256=source.sha256)

    def _write(self, path: str, text: str, mode: str, owner: str, group: str) -> None:
        raw = text.encode()
        self.states[path] = FileState("file", mode, owner, group, len(raw), hashlib.sha256(raw).hexdigest())
        self.texts[path] = text


class FakeStore:
    """A store that holds whatever is asked for."""

    def __init__(self, folder: Path, archives: Mapping[str, Mapping[str, list[str]]]) -> None:
        self._folder = folder
        self._archives = archives

    def file(self, artifact: str, filename: str) -> PublishedFile:
        path = f"files/{artifact}/1/{filename}"
        return PublishedFile(f"https://mirror/{path}", path, hashlib.sha256(path.encode()).hexdigest(), 1, "1")

    def files(self, artifact: str) -> tuple[PublishedFile, ...]:
        return tuple(self.file(artifact, name) for name in ("a-1-py3-none-any.whl", "requirements.lock"))

    def image(self, artifact: str) -> str:
        return f"registry.example/{artifact}:1"

    def version(self, artifact: str) -> str:
        return "1"

    def tree(self, artifacts: Any) -> tuple[TreeFile, ...]:
        key = self._folder / "key.asc"
        key.write_text("the store's public key\n")
        digest, size = hashlib.sha256(key.read_bytes()).hexdigest(), key.stat().st_size
        path = PurePosixPath("apt/bookworm/onprem-mlops.asc")
        indices = (self._index(name, packages) for name, packages in self._archives.items())
        return (TreeFile(path=path, source=key, sha256=digest, size=size), *indices)

    def _index(self, archive: str, packages: Mapping[str, list[str]]) -> TreeFile:
        """An archive of packages, given as package → versions."""
        index = self._folder / f"{archive}-Packages"
        listed = ((name, version) for name, versions in packages.items() for version in versions)
        index.write_text("".join(f"Package: {name}\nVersion: {version}\n\n" for name, version in listed))
        return TreeFile(path=PurePosixPath(f"apt/{archive}/Packages"), source=index, sha256="0" * 64, size=1)


class FakeMaterial:
    """Secrets and certificates that are always the same."""

    authority_pem = "the site's authority\n"

    def __init__(self, site: Site) -> None:
        self._keys = {at for at, secret in declared(site).items() if secret.kind == "key32"}

    def secret(self, role: str, name: str) -> Hidden:
        text = f"secret-{role}-{name}"
        if (role, name) in self._keys:
            text = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        return Hidden(text)

    def certificate(self, role: str, node: Node, wanted: Certificate) -> IssuedCertificate:
        soon = datetime(2030, 1, 1, tzinfo=UTC)
        return IssuedCertificate(f"chain of {wanted.name}\n", Hidden("private key\n"), soon, 1, False)


@dataclass
class Case:
    """One YAML file."""

    path: Path
    given: dict[str, Any]

    @property
    def role(self) -> str:
        return self.path.parent.name

    def site(self, folder: Path) -> Site:
        """The cases' common site with this case's own settings."""
        return load_site(self.written(folder))

    def written(self, folder: Path) -> Path:
        """That site as an inventory."""
        yaml = YAML(typ="safe")
        written = yaml.load(Path(__file__).with_name("site.yaml"))
        written |= self.given.get("site", {})
        written["settings"] = {self.role: self.given.get("settings", {})} if "settings" in self.given else {}
        key = folder / "id"
        key.touch(mode=0o600)
        written["ssh"]["key"] = str(key)
        yaml.dump(written, folder / "site.yaml")
        return folder

    def node(self) -> FakeNode:
        """The node before the step."""
        facts = self.given.get("facts", {})
        node = FakeNode(
            packages=dict.fromkeys(facts.get("packages", ()), "1"),
            probes=dict(facts.get("probes", {})),
            objects=dict(facts.get("objects", {})),
        )
        for path, text in facts.get("files", {}).items():
            node._write(path, text, "644", "root", "root")
        for unit in facts.get("active", ()):
            node.units[unit] = UnitState("loaded", "active", "enabled", False, _STARTED)
        return node

    def run(self, node: FakeNode, folder: Path) -> str:
        """Run the step as in a plan; the text of the error that it ended with, if any."""
        context = self._context(folder)
        module = deploy_module(find_roles()[self.role])
        declared = (*steps_of(module), *steps_of(module, "__removal__"), *steps_of(module, "__admission__"))
        step = next(one for one in declared if one.name == self.given["step"])
        node.changes = []
        with ctx_host.use(node):
            try:
                step.function(context, **self.given.get("inputs", {}))
            except (MlopsError, KnownLater) as error:
                return str(error)
        return ""

    def _context(self, folder: Path) -> Context[Any]:
        site = self.site(folder)
        return Context(
            site=site,
            node=site.node(self.given["node"]),
            role=self.role,
            settings=site.settings(self.role),
            folder=REPOSITORY / "roles" / self.role,
            artifacts=FakeStore(folder, self.given.get("archives", {})),
            material=FakeMaterial(site),
            planning=True,
            site_openings={
                node.name: tuple(one for role in site.role_settings.values() for one in role.openings(site, node))
                for node in site.nodes
            },
            names=site.names,
            state=folder,
        )


def cases(role: str) -> list[Any]:
    """The cases of a role, for `pytest.mark.parametrize`; what they share stands in its `common.yml`.

    A case that is `like` another one gives what differs, and all that it expects.
    """
    folder = Path(__file__).with_name(role)
    yaml = YAML(typ="safe")
    shared = folder / "common.yml"
    common = yaml.load(shared) if shared.exists() else {}
    paths = sorted(folder.glob("*.yaml"))
    return [pytest.param(Case(path, {**common, **_given(path, yaml)}), id=path.stem) for path in paths]


def _given(path: Path, yaml: YAML) -> dict[str, Any]:
    own: dict[str, Any] = yaml.load(path)
    if "like" not in own:
        return own
    base = _given(path.with_name(f"{own.pop('like')}.yaml"), yaml)
    del base["expects"]
    return _laid_over(base, own)


def _laid_over(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    both = {key: _laid_over(base[key], own[key]) for key in base.keys() & own.keys() if isinstance(own[key], dict)}
    return {**base, **own, **both}


def check(case: Case, folder: Path) -> None:
    """Run a case and compare: the error, what the commands and files hold, what must not change, and a second run."""
    node, expected = case.node(), case.given["expects"]
    error = case.run(node, folder)
    if "error" in expected:
        assert expected["error"] in error
        assert node.changes == [], "it touched the node before it refused"
        return
    # What it finds on its way that it must not touch; what it did until then may stay.
    assert expected.get("refuses", "") in error
    assert bool(error) == ("refuses" in expected), error
    changes = {change.purpose: change for change in node.changes}
    for purpose, parts in expected.get("changes", {}).items():
        assert purpose in changes, f"nothing would be done for {purpose!r}; done: {', '.join(changes)}"
        shown = "\n".join([*changes[purpose].commands, *(diff.after or "" for diff in changes[purpose].diffs)])
        for part in parts or ():
            assert part in shown, f"{purpose}: no {part!r} in\n{shown}"
    order = expected.get("order", ())
    assert [purpose for purpose in changes if purpose in order] == list(order), f"the order is {list(changes)}"
    for purpose in expected.get("unchanged", ()):
        assert purpose not in changes, f"{purpose!r} would be done: {changes[purpose].commands}"
    for text in expected.get("nowhere", ()):
        for change in node.changes:
            assert text not in "\n".join([*change.commands, *(diff.after or "" for diff in change.diffs)])
    if expected.get("converges", True):
        _check_second_run(case, node, folder)
    for kind in ("restart", "reload"):
        for path, purpose in expected.get(f"{kind}s", {}).items():
            _check_taken_up(kind, case, node, folder, path, purpose)


def _check_second_run(case: Case, node: FakeNode, folder: Path) -> None:
    node.settled = True
    node.probes |= case.given.get("afterwards", {})
    case.run(node, folder)
    assert [(change.purpose, change.commands) for change in node.changes] == []


def _check_taken_up(kind: str, case: Case, node: FakeNode, folder: Path, path: str, purpose: str) -> None:
    node.changed = path
    case.run(node, folder)
    taken_up = [change.purpose for change in node.changes if f"systemctl {kind}" in change.commands[-1]]
    assert taken_up == [purpose] == [change.purpose for change in node.changes], f"{path} has changed"
