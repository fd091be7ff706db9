"""Writes docs/reference/site-file.md from the models: ``python -m onprem_mlops.site.reference``."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Literal, Union

import annotated_types
from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from onprem_mlops.atomic import write_atomically
from onprem_mlops.paths import REPOSITORY
from onprem_mlops.site import fields
from onprem_mlops.site.model import Site
from onprem_mlops.site.role import ALL, Role, find_roles

PAGE = REPOSITORY / "docs/reference/site-file.md"

_INTRODUCTION = """\
# site.yaml

<!-- Generated from the models with `python -m onprem_mlops.site.reference`. Do not edit. -->

The single truth about a site. `./mlops init NAME` writes a commented one, `./mlops validate` checks it and prints every
problem at once as `path:line:column: what is wrong; what would be right`. Unknown keys are errors. YAML is read as
version 1.2 (`yes` is a text, `true` is a truth value); aliases, merge keys and tags are not used.

Defaults are right for production; a field that is not given has its default. `inventories/lab/site.yaml` is a whole
example.
"""

_CHECKS = """\
## What is checked across fields

- Names and addresses of nodes, and their host keys, are each other's own; no node has the name of a service, of a
  group, or one of {reserved}.
- The networks of nodes, pods and services share no address. Every node's address lies in `networks.nodes` and is
  neither its network nor its broadcast address. So does `networks.api_address`, which no node has.
- Control planes are odd in number; with three or more there is a `networks.api_address`.
- Every node is in at least one group, and every group that a role which is on needs has a node.
- A role that another one needs is on; no settings are given for a role that is off.
- `ssh.key` is there and nobody else can read it.
- What roles themselves check, see their pages.
"""

_WORDS: Mapping[object, str] = {
    str: "text",
    bool: "true or false",
    int: "whole number",
    float: "number",
    ByteSize: "size, such as `500G`",
    Path: "path",
    IPv4Address: "IPv4 address",
    IPv4Network: "IPv4 network",
    fields.Taint: "`key=value:Effect`",
    types.NoneType: "nothing",
}

_LIMITS: Mapping[type, tuple[str, str]] = {
    annotated_types.Ge: ("ge", "at least"),
    annotated_types.Gt: ("gt", "more than"),
    annotated_types.Le: ("le", "at most"),
    annotated_types.Lt: ("lt", "less than"),
}


def page(roles: Mapping[str, Role]) -> str:
    """The whole page, in Markdown."""
    parts = [_INTRODUCTION, *_section("The file", "", Site, skip=("role_settings", "lab"))]
    lab = Site.model_fields["lab"]
    parts += _section("`lab`", str(lab.description), typing.get_args(lab.annotation)[0])
    parts.append(_CHECKS.format(reserved=", ".join(f"`{name}`" for name in _reserved())))
    parts.append(
        "## `settings`\n\nUnder `settings:`, the settings of roles that differ from their defaults, by role.\n"
    )
    for role in roles.values():
        parts += _role(role)
    return "\n".join(parts)


def _reserved() -> list[str]:
    from onprem_mlops.site.checks import RESERVED_NAMES

    return sorted(RESERVED_NAMES)


def _role(role: Role) -> Iterator[str]:
    groups = "every node" if ALL in role.settings.groups else _named(role.groups)
    needs = f" Needs {_named(role.settings.requires)}." if role.settings.requires else ""
    yield f"### `settings.{role.name}`\n\n{role.summary} Runs on {groups or 'no node of its own'}.{needs}\n"
    if _shown_fields(role.settings):
        yield from _tables(f"settings.{role.name}", role.settings, "####")
    else:
        yield "It has no settings.\n"


def _named(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _section(title: str, text: str, model: type[BaseModel], skip: tuple[str, ...] = ()) -> Iterator[str]:
    yield f"## {title}\n" + (f"\n{text}\n" if text else "")
    yield from _tables("" if model is Site else title.strip("`"), model, "###", skip)


def _tables(path: str, model: type[BaseModel], heading: str, skip: tuple[str, ...] = ()) -> Iterator[str]:
    """The table of a model, then those of the models inside it."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    inner: list[tuple[str, type[BaseModel]]] = []
    for name, info in _shown_fields(model).items():
        if name in skip:
            continue
        key = info.alias or name
        rows.append(f"| `{key}` | {_cell(_type(info))} | {_cell(_default(info))} | {_cell(info.description or '')} |")
        where, nested = _nested(f"{path}.{key}" if path else key, info.annotation)
        if nested is not None:
            inner.append((where, nested))
    yield "\n".join(rows) + "\n"
    for where, nested in inner:
        summary = (nested.__doc__ or "").strip().split("\n\n")[0]
        yield f"{heading} `{where}`\n\n{summary}\n"
        yield from _tables(where, nested, heading)


def _shown_fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {name: info for name, info in model.model_fields.items() if not info.exclude}


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _nested(path: str, annotation: object) -> tuple[str, type[BaseModel] | None]:
    """The model inside a type, and the path with ``[]`` for each list on the way to it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return path, None if annotation is fields.Taint else annotation
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple:
        path += "[]"
    for argument in arguments:
        found = _nested(path, argument)
        if found[1] is not None:
            return found
    return path, None


def _type(info: FieldInfo) -> str:
    limits = [text for item in info.metadata if (text := _limit(item))]
    return ", ".join([_word(info.annotation), *limits])


def _limit(item: object) -> str:
    for kind, (attribute, words) in _LIMITS.items():
        if isinstance(item, kind):
            return f"{words} {getattr(item, attribute)}"
    return ""


def _word(annotation: Any) -> str:
    """A type as a person says it."""
    if annotation in _WORDS:
        return _WORDS[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _word(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_word(argument) for argument in arguments if argument is not types.NoneType)
    if origin is tuple:
        return f"list of {_plural(_word(arguments[0]))}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"mapping of {_word(arguments[0])} to {_word(arguments[1])}"
    return "mapping"


def _plural(word: str) -> str:
    return {
        "text": "texts",
        "mapping": "mappings",
        "IPv4 address": "IPv4 addresses",
        "IPv4 network": "IPv4 networks",
        "whole number": "whole numbers",
    }.get(word, word)


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "needed"
    value = info.default_factory() if info.default_factory else info.default  # type: ignore[call-arg]
    if isinstance(value, BaseModel):
        return "its defaults"
    if info.annotation is ByteSize:
        return f"`{ByteSize(value).human_readable(separator='')}`"
    if value is None or value is PydanticUndefined or value == () or value == {} or value == "":
        return "none"
    return f"`{_value(value)}`"


def _value(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case Enum():
            return str(value.value)
        case tuple() | frozenset():
            return f"[{', '.join(map(_value, value))}]"
        case Mapping():
            return "{" + ", ".join(f"{_value(key)}: {_value(item)}" for key, item in value.items()) + "}"
    return str(value)


def main() -> None:
    """Write the page."""
    write_atomically(PAGE, page(find_roles()).encode(), 0o644)


if __name__ == "__main__":
    main()
