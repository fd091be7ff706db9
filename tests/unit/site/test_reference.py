"""What holds for every field of a site file: it is on the reference page, described, and takes what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, get_args

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from onprem_mlops.roles import Role, find_roles
from onprem_mlops.site import Site
from onprem_mlops.site.reference import PAGE, page


def test_the_committed_page_is_current() -> None:
    expected = page(find_roles())
    assert PAGE.read_text(encoding="utf-8") == expected, "run: python -m onprem_mlops.site.reference"


def test_every_setting_is_on_it() -> None:
    text = page(find_roles())
    for role in find_roles().values():
        assert f"### `settings.{role.name}`" in text
        for name, field in role.settings.model_fields.items():
            assert f"| `{field.alias or name}` |" in text


def models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for info in annotation.model_fields.values():
            yield from models(info.annotation)
    for argument in get_args(annotation):
        yield from models(argument)


@pytest.mark.parametrize("role", [None, *find_roles().values()], ids=lambda role: role.name if role else "site")
def test_every_field_is_described(role: Role | None) -> None:
    from onprem_mlops.site import Taint

    for model in models(role.settings if role else Site):
        if model is Taint:
            continue
        for name, info in model.model_fields.items():
            assert info.description, f"{model.__module__}.{model.__name__}.{name} has no description"


def _numbers() -> Iterator[tuple[str, Any]]:
    """Every field of a site file that takes a number, not just this one, with its type."""
    parts = (Site, *(role.settings for role in find_roles().values()))
    for model in dict.fromkeys(one for part in parts for one in models(part)):
        for name, field in model.model_fields.items():
            kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            schema = json.dumps(TypeAdapter(kind).json_schema())
            if re.search(r'"type": "(integer|number)"', schema) and '"const"' not in schema:
                yield f"{model.__module__}.{model.__name__}.{name}", kind


@pytest.mark.parametrize(("name", "kind"), [pytest.param(*one, id=one[0]) for one in _numbers()])
def test_a_truth_value_is_no_number(name: str, kind: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(True)
