"""The reference of the site file is what the models say, and says why of every default."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import pytest
from pydantic import BaseModel

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
