"""Rules that every suite keeps: a sentence for each check, a message for each assertion, no deploying code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from onprem_mlops.paths import REPOSITORY

FILES = sorted([*REPOSITORY.glob("roles/*/verify/test_*.py"), *REPOSITORY.glob("tests/phases/*/test_*.py")])


def _name(file: Path) -> str:
    return str(file.relative_to(REPOSITORY))


def _tests(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    return (one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name.startswith("test_"))


def test_every_role_has_a_suite() -> None:
    roles = {path.parent.name for path in REPOSITORY.glob("roles/*/settings.py")}
    assert roles == {file.parent.parent.name for file in FILES if file.parts[-4] == "roles"}


@pytest.mark.parametrize("file", FILES, ids=_name)
def test_each_check_is_a_sentence(file: Path) -> None:
    sentences = []
    for test in _tests(ast.parse(file.read_text())):
        first = (ast.get_docstring(test) or "").partition("\n\n")[0]
        assert first.endswith(".") and "\n" not in first, f"{_name(file)}:{test.lineno}: {test.name} has no sentence"
        sentences.append(first)
    assert sentences, f"{_name(file)} checks nothing"
    assert len(sentences) == len(set(sentences)), f"{_name(file)}: two checks with one sentence"


@pytest.mark.parametrize("file", FILES, ids=_name)
def test_each_assertion_has_a_message(file: Path) -> None:
    for one in ast.walk(ast.parse(file.read_text())):
        if isinstance(one, ast.Assert):
            assert one.msg is not None, f"{_name(file)}:{one.lineno}: an assertion without a message"


@pytest.mark.parametrize("file", FILES, ids=_name)
def test_each_check_can_fail(file: Path) -> None:
    helpers = {one.name for one in ast.parse(file.read_text()).body if isinstance(one, ast.FunctionDef)}
    for test in _tests(ast.parse(file.read_text())):
        can = any(
            isinstance(one, (ast.Assert, ast.Raise)) or _calls(one, helpers | {"raises"}) for one in ast.walk(test)
        )
        assert can, f"{_name(file)}:{test.lineno}: {test.name} cannot fail"


def _calls(one: ast.AST, names: set[str]) -> bool:
    if not isinstance(one, ast.Call):
        return False
    called = one.func.attr if isinstance(one.func, ast.Attribute) else getattr(one.func, "id", "")
    # `assert_…` are the suites' own, of onprem_mlops.verify.suite.
    return called in names or called.startswith("assert_")


@pytest.mark.parametrize("file", FILES, ids=_name)
def test_suites_know_nothing_of_the_deploying_code(file: Path) -> None:
    for one in ast.walk(ast.parse(file.read_text())):
        modules = [one.module or ""] if isinstance(one, ast.ImportFrom) else []
        modules += [alias.name for alias in one.names] if isinstance(one, ast.Import) else []
        for module in modules:
            wrong = module.startswith(("pyinfra", "onprem_mlops.engine")) or module.endswith(".deploy")
            assert not wrong, f"{_name(file)}:{one.lineno}: {module} is code that deploys"  # type: ignore[attr-defined]
