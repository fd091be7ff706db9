"""Turns what pydantic finds into sentences for the person who wrote the file."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from ipaddress import IPv4Network
from typing import Any, Union

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from onprem_mlops.errors import suggest
from onprem_mlops.site.document import Document, Loc

_SECRET_WORDS = re.compile(r"pass|secret|token|credential|private|api_?key", re.IGNORECASE)
_USERINFO = re.compile(r"//[^/@\s]+@")
_LONGEST_SHOWN = 60


def shown(value: object, loc: Loc = ()) -> str:
    """A value as it may be printed: short, and never a secret."""
    if any(isinstance(step, str) and _SECRET_WORDS.search(step) for step in loc):
        return "(a value that is not shown)"
    match value:
        case None:
            return "empty"
        case bool():
            return str(value).lower()
        case str():
            text = _USERINFO.sub("//…@", value)
            return f'"{text}"' if len(text) <= _LONGEST_SHOWN else f'"{text[:_LONGEST_SHOWN]}…"'
        case dict():
            return "a mapping"
        case list() | tuple():
            return "a list"
    return str(value)


def report(error: ValidationError, document: Document, base: Loc, annotation: object) -> None:
    """Note every error of a validation of what stands at ``base`` and has the type ``annotation``."""
    alternatives: dict[Loc, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        loc = (*base, *(step for step in details["loc"] if step != "[key]"))
        relative = loc[len(base) :]
        match details["type"]:
            case "missing":
                document.report(loc[:-1], _missing(relative, annotation), at_key=True)
            case "extra_forbidden":
                known = _keys_of(_type_at(annotation, relative[:-1]))
                word = str(loc[-1])
                document.report(loc, f"unknown key `{word}`; {suggest(word, known)}", at_key=True)
            case _:
                alternatives.setdefault(_place(document, loc), []).append(details)
    for loc, several in alternatives.items():
        # Where more than one type is allowed, pydantic gives an error for each.
        example = _example(annotation, loc[len(base) :])
        message = _message(several[0], loc, example)
        others = [_message(details, loc, example).partition("; ")[2] for details in several[1:]]
        document.report(loc, ", or ".join([message, *dict.fromkeys(others)]))


def _place(document: Document, loc: Loc) -> Loc:
    """The longest part of ``loc`` that the file has: pydantic adds the type it tried to the way."""
    known = loc
    while known and not document.has(known):
        known = known[:-1]
    return known or loc


def _missing(loc: Loc, annotation: object) -> str:
    key = str(loc[-1])
    description = _description(annotation, loc)
    return f"`{key}` is missing; add `{key}:`" + (f" ({description})" if description else "")


def _description(annotation: object, loc: Loc) -> str:
    """The first sentence of a field's description, to say what is to be written there."""
    field = _field(annotation, loc)
    text = field.description or "" if field else ""
    return re.split(r"(?<=[a-z0-9`…])[.;] ", text)[0].rstrip(".")


def _example(annotation: object, loc: Loc) -> str:
    """A field's first example; empty if it has none."""
    field = _field(annotation, loc)
    return str(field.examples[0]) if field and field.examples else ""


def _field(annotation: object, loc: Loc) -> FieldInfo | None:
    model = _type_at(annotation, loc[:-1])
    return model.model_fields.get(str(loc[-1])) if loc and _is_model(model) else None


def _keys_of(model: object) -> list[str]:
    if not _is_model(model):
        return []
    return [info.alias or name for name, info in model.model_fields.items() if not info.exclude]


def _is_model(annotation: object) -> typing.TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _type_at(annotation: object, loc: Loc) -> object:
    """The model (or other type) that stands at ``loc`` inside ``annotation``; None if the way is lost."""
    annotation = _bare(annotation)
    if not loc:
        return annotation
    step, rest = loc[0], loc[1:]
    if _is_model(annotation):
        for name, info in annotation.model_fields.items():
            if step in (name, info.alias):
                return _type_at(info.annotation, rest)
        return None
    arguments = [argument for argument in typing.get_args(annotation) if argument is not Ellipsis]
    return _type_at(arguments[-1], rest) if arguments else None


def _bare(annotation: object) -> object:
    """Without Annotated and without ``| None``."""
    while True:
        origin = typing.get_origin(annotation)
        if origin is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        elif origin in (Union, types.UnionType):
            annotation = next((a for a in typing.get_args(annotation) if a is not type(None)), None)
        else:
            return annotation


_WANTED = {
    "string_type": "text is wanted (in quotes if it looks like a number)",
    "int_type": "a whole number is wanted",
    "int_parsing": "a whole number is wanted",
    "int_from_float": "a whole number is wanted",
    "float_type": "a number is wanted",
    "float_parsing": "a number is wanted",
    "bool_type": "write true or false",
    "bool_parsing": "write true or false",
    "list_type": 'a list is wanted: "[a, b]", or one "- item" a line',
    "tuple_type": 'a list is wanted: "[a, b]", or one "- item" a line',
    "dict_type": "a mapping is wanted: `key: value`, one a line",
    "mapping_type": "a mapping is wanted: `key: value`, one a line",
    "model_type": "a mapping is wanted: `key: value`, one a line",
    "model_attributes_type": "a mapping is wanted: `key: value`, one a line",
    "is_instance_of": "another type is wanted",
    "ip_v4_address": "an IPv4 address is wanted, such as 192.0.2.10",
    "ip_v4_network": "an IPv4 network is wanted, such as 192.0.2.0/24",
    "byte_size": "a size with its unit is wanted, such as 500G or 2TiB",
    "byte_size_unit": "a size with its unit is wanted, such as 500G or 2TiB",
}


def _message(details: ErrorDetails, loc: Loc, example: str) -> str:
    """One error as "what is wrong; what would be right"."""
    kind, context, given = details["type"], details.get("ctx", {}), details["input"]
    name = _name(loc)
    if kind == "value_error":
        return f"{name}: {context['error']}"
    if kind == "ip_v4_network" and (better := _nearest_network(given)):
        return f"{name} is {shown(given, loc)}, which has host bits set; write {better}"
    if kind == "ip_v4_address" and _nearest_network(given):
        return f"{name} is {shown(given, loc)}; write it without the prefix length: {str(given).partition('/')[0]}"
    if kind == "literal_error":
        return f"{name} is {shown(given, loc)}; write {_one_of(context['expected'])}"
    if kind == "string_pattern_mismatch" and example:
        return f"{name} is {shown(given, loc)}; write it like {example}"
    if kind in ("int_type", "float_type") and isinstance(given, str) and re.fullmatch(r"[0-9.]+", given):
        return f"{name} is {shown(given, loc)}; write it without quotes: {given}"
    wanted = _WANTED.get(kind) or _limit(kind, context) or details["msg"][0].lower() + details["msg"][1:]
    return f"{name} is {shown(given, loc)}; {wanted}"


def _one_of(expected: str) -> str:
    """Pydantic's ``'a', 'b' or 'c'`` without the quotes."""
    return expected.replace("'", "")


def _limit(kind: str, context: Mapping[str, Any]) -> str:
    match kind:
        case "greater_than_equal":
            return f"{context['ge']} or more is wanted"
        case "less_than_equal":
            return f"{context['le']} or less is wanted"
        case "greater_than":
            return f"more than {context['gt']:g} is wanted"
        case "less_than":
            return f"less than {context['lt']:g} is wanted"
        case "too_short" | "too_long":
            return _length(context, "entries")
        case "string_too_short" | "string_too_long":
            return _length(context, "characters")
        case "string_pattern_mismatch":
            return f"it must match {context['pattern']}"
    return ""


def _length(context: Mapping[str, Any], what: str) -> str:
    if "min_length" in context:
        return f"{context['min_length']} or more {what} are wanted"
    return f"{context['max_length']} {what} at most are wanted"


def _nearest_network(given: object) -> str:
    """The network a host address with prefix length lies in; empty if it is not that."""
    try:
        return str(IPv4Network(str(given), strict=False)) if "/" in str(given) else ""
    except ValueError:
        return ""


def _name(loc: Loc) -> str:
    """What to call the place: the key, or for an item of a list the list's key."""
    keys = [step for step in loc if isinstance(step, str)]
    return f"`{keys[-1]}`" if keys else "the file"
