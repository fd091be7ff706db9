"""From the file to a ``Site``: sections first, then across them, so that all errors come up at once."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from onprem_mlops.errors import suggest
from onprem_mlops.site import checks, explain
from onprem_mlops.site.document import Document, Loc, read_document
from onprem_mlops.site.model import LabKeys, Node, Site
from onprem_mlops.site.role import Problem, Role, RoleSettings, find_roles

SITE_FILE = "site.yaml"
_PLAIN_SECTIONS = ("version", "name", "domain", "description", "ssh", "networks", "apt", "lab")


def load_site(inventory: Path, roles: Mapping[str, Role] | None = None) -> Site:
    """Read ``inventory``/site.yaml and check it, alone and against ``roles`` (default: all there are).

    ``inventory`` may also hold a ``roles`` folder with roles of the site's own; naming its site.yaml means the folder.
    SiteError with every problem found; RequestError if the file cannot be read.
    """
    if inventory.name == SITE_FILE and inventory.is_file():
        inventory = inventory.parent
    if roles is None:
        roles = _roles_of(inventory)
    document = read_document(inventory / SITE_FILE)
    return _Loader(document, roles, inventory).site()


def _roles_of(inventory: Path) -> Mapping[str, Role]:
    own = inventory / "roles"
    common = find_roles()
    return {**common, **find_roles(own)} if own.is_dir() else common


class _Loader:
    """One reading of one file."""

    def __init__(self, document: Document, roles: Mapping[str, Role], folder: Path) -> None:
        self._document = document
        self._roles = roles
        self._folder = folder

    def site(self) -> Site:
        """The site, or SiteError."""
        document = self._document
        if not isinstance(document.values, dict):
            document.report((), f"the file is {explain.shown(document.values)}; write `key: value`, one a line")
            document.refuse_if_wrong()
        self._check_keys()
        parts: dict[str, Any] = {}
        for name in _PLAIN_SECTIONS:
            parts[name] = self._section(name)
        nodes = self._nodes()
        on = self._roles_on([node for node in nodes if node is not None])
        settings = self._settings(on)
        checks.check_parts(
            document, checks.Parts(parts.get("networks"), nodes, on, self._roles, parts.get("ssh"), parts.get("lab"))
        )
        document.refuse_if_wrong()
        given = {name: part for name, part in parts.items() if document.has((name,))}
        site = Site.model_validate({**given, "nodes": nodes, "roles": on, "settings": settings, "folder": self._folder})
        checks.check_names(document, site)
        self._check_roles(site)
        document.refuse_if_wrong()
        return site

    def _check_keys(self) -> None:
        known = [info.alias or name for name, info in Site.model_fields.items() if not info.exclude]
        assert isinstance(self._document.values, dict)
        for key in self._document.values:
            if key not in known:
                message = f"unknown key `{key}`; {suggest(key, known)}"
                self._document.report((key,), message, at_key=True)

    @functools.cached_property
    def _lab_keys(self) -> LabKeys | None:
        name = self._document.at(("name",))
        return LabKeys(str(name)) if self._document.has(("lab",)) else None

    def _section(self, name: str) -> object:
        if not self._document.has((name,)):
            info = Site.model_fields[name]
            if info.is_required():
                hint = str(info.description).rstrip(".")
                self._document.report((), f"`{name}` is missing; add `{name}:` ({hint})")
                return None
            return info.get_default(call_default_factory=True, validated_data={})
        annotation = _field(name)
        if name == "lab" and self._document.at((name,)) is None:
            # `lab:` with nothing under it says "a lab, with all defaults".
            return _adapter(annotation).validate_python({})
        return self._valid(annotation, (name,))

    def _valid(self, annotation: Any, loc: Loc) -> Any:
        try:
            return _adapter(annotation).validate_python(self._document.at(loc), context=self._lab_keys)
        except ValidationError as error:
            explain.report(error, self._document, loc, annotation)
            return None

    def _nodes(self) -> tuple[Node | None, ...]:
        """The nodes in order; None in the place of a wrong one."""
        listed = self._list("nodes")
        if not listed and (listed is not None or not self._document.has(("nodes",))):
            message = "the site has no nodes; add at least one under `nodes:`"
            self._document.report(("nodes",), message, at_key=True)
        return tuple(self._valid(Node, ("nodes", index)) for index in range(len(listed or ())))

    def _list(self, name: str) -> list[object] | None:
        """The list at top-level ``name``; None, noted, if there is something else."""
        value = self._document.at((name,))
        if value is None:
            return []
        if not isinstance(value, list):
            self._document.report((name,), f'`{name}` is {explain.shown(value)}; a list is wanted: one "- item" a line')
            return None
        return value

    def _roles_on(self, nodes: Sequence[Node]) -> tuple[str, ...]:
        if not self._document.has(("roles",)):
            return tuple(name for name, role in self._roles.items() if role.settings.wanted(nodes))
        on: dict[str, None] = {}
        for index, name in enumerate(self._list("roles") or ()):
            loc = ("roles", index)
            if not isinstance(name, str):
                self._document.report(loc, f"the name of a role is wanted, not {explain.shown(name)}; write it as text")
            elif name not in self._roles:
                self._document.report(loc, f"unknown role {explain.shown(name)}; {suggest(str(name), self._roles)}")
            elif name in on:
                self._document.report(loc, f'role "{name}" is in the list twice; keep one')
            else:
                on[name] = None
        return tuple(on)

    def _settings(self, on: tuple[str, ...]) -> dict[str, RoleSettings]:
        given = self._document.at(("settings",))
        if given is not None and not isinstance(given, dict):
            self._document.report(("settings",), f"`settings` is {explain.shown(given)}; a mapping of roles is wanted")
        for name in given if isinstance(given, dict) else ():
            self._check_settings_of(name, on)
        return {name: value for name in on if (value := self._settings_of(name)) is not None}

    def _check_settings_of(self, name: str, on: tuple[str, ...]) -> None:
        loc = ("settings", name)
        if name not in self._roles:
            message = f'settings for an unknown role "{name}"; {suggest(name, self._roles)}'
            self._document.report(loc, message, at_key=True)
        elif name not in on:
            message = f'settings for role "{name}", which is off; add it to `roles`, or remove its settings'
            self._document.report(loc, message, at_key=True)

    def _settings_of(self, name: str) -> RoleSettings | None:
        """The settings of one role, from the file or all defaults."""
        loc = ("settings", name)
        model = self._roles[name].settings
        if self._document.at(loc) is not None:
            found = self._valid(model, loc)
            return found if isinstance(found, RoleSettings) else None
        try:
            return model()
        except ValidationError as error:
            explain.report(error, self._document, loc, model)
            return None

    def _check_roles(self, site: Site) -> None:
        for name, settings in site.role_settings.items():
            for problem in settings.problems(site):
                found = Problem(problem) if isinstance(problem, str) else problem
                self._document.report(self._place(found, name), found.message)

    def _place(self, problem: Problem, role: str) -> Loc:
        way: Loc = tuple(int(step) if step.isdigit() else step for step in problem.field.split(".") if step)
        if problem.node:
            listed = self._list("nodes") or []
            names = [node.get("name") if isinstance(node, dict) else None for node in listed]
            return ("nodes", names.index(problem.node), *way)
        return ("settings", role, *way)


def _field(name: str) -> Any:
    """The type of a field of Site, with its constraints."""
    info = Site.model_fields[name]
    return Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation


@functools.cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)
