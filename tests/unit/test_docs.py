"""The documentation says what is: its links lead somewhere, its commands and options exist, its example works."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from docs.generate import commands, pages
from onprem_mlops import events
from onprem_mlops.cli import app
from onprem_mlops.paths import REPOSITORY
from onprem_mlops.plan import PHASES, Phase, Use, deploy_module, plan, site_roles
from onprem_mlops.site import load_site
from onprem_mlops.steps import steps_of

PAGES = sorted(
    path.relative_to(REPOSITORY)
    for pattern in ("*.md", "docs/**/*.md", "roles/**/*.md", "artifacts/*.md")
    for path in REPOSITORY.glob(pattern)
)
COMMANDS: Any = typer.main.get_command(app)
ADD_A_ROLE = REPOSITORY / "docs" / "how-to" / "add-a-role.md"


def _text(page: Path) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def _anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as Git hosts make them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _without_code(_text(page))):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (REPOSITORY / page.parent / name).resolve() if name else REPOSITORY / page
        assert file.exists(), f"{page}: {target} leads nowhere"
        if anchor:
            assert anchor in _anchors(file.read_text()), f"{page}: {target}: no such heading"


def _calls(text: str) -> Iterator[list[str]]:
    """Each call of our command in a page, as words; what follows a `--` is somebody else's."""
    text = re.sub(r" \\\n\s*", " ", text)
    for call in re.findall(r"\./mlops +([^`\n]+)", text):
        words = shlex.split(re.split(r" [#&|;]|; | … |…$|\)|\]\(", call.replace("'", ""))[0])
        yield words[: words.index("--")] if "--" in words else words


def _resolved(words: list[str]) -> tuple[str, Any, list[str]]:
    """The command that a call names, with the rest of its words."""
    found = COMMANDS
    path: list[str] = []
    while words and hasattr(found, "commands"):
        assert words[0] in found.commands, f"no command {' '.join([*path, words[0]])}"
        path.append(words[0])
        found, words = found.commands[words[0]], words[1:]
    return " ".join(path), found, words


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_and_options_exist(page: Path) -> None:
    for words in _calls(_text(page)):
        if words[0].isupper() or words[0].startswith("-"):
            continue
        name, command, rest = _resolved(words)
        known = {"--help", *(flag for one in command.params for flag in one.opts)}
        for word in rest:
            if word.startswith("-"):
                assert word.partition("=")[0] in known, f"{page}: ./mlops {name} has no option {word}"
        if name in ("plan", "deploy", "verify") and rest and rest[0].islower() and not rest[0].startswith("-"):
            assert rest[0] in PHASES, f"{page}: {rest[0]} is no phase"


def test_every_command_is_documented() -> None:
    described = _text(Path("docs/reference/cli.md"))
    assert all(f"\n## {name}\n" in described for name in commands())


def test_generated_pages_are_current() -> None:
    stale = [path.name for path, text in pages().items() if path.read_text() != text]
    assert not stale, "run: .venv/bin/python docs/generate.py"


def test_every_schema_is_documented() -> None:
    described = _text(Path("docs/reference/json.md"))
    code = "".join(path.read_text() for path in (REPOSITORY / "src").rglob("*.py"))
    schemas = set(re.findall(r'"([a-z-]+/v\d+)"', code))
    assert len(schemas) > 10
    assert {one for one in schemas if f"`{one}`" not in described} == set()


def test_every_event_is_documented() -> None:
    described = _text(Path("docs/reference/json.md"))
    kinds = [one.kind for one in vars(events).values() if isinstance(one, type) and issubclass(one, events.Event)]
    assert [kind for kind in kinds if kind != "event" and f"| `{kind}` |" not in described] == []


def test_every_variable_is_documented() -> None:
    code = "".join(path.read_text() for path in (REPOSITORY / "src").rglob("*.py"))
    described = _text(Path("docs/reference/cli.md"))
    assert {one for one in re.findall(r"\bMLOPS_[A-Z_]+\b", code) if f"`{one}`" not in described} == set()


def test_the_lock_of_nodes_is_where_the_pages_say() -> None:
    lock = re.search(r'^LOCK = "(.+)"$', (REPOSITORY / "src/onprem_mlops/engine/run.py").read_text(), re.MULTILINE)
    assert lock
    for page in ("docs/architecture.md", "docs/how-to/when-a-run-fails.md"):
        assert f"`{lock[1]}`" in _text(Path(page))


def test_the_example_of_a_role_works(tmp_path: Path) -> None:
    role = tmp_path / "roles" / "notice"
    example = re.findall(r"^`([\w./]+)`\n```\w+\n(.*?)^```$", ADD_A_ROLE.read_text(), re.DOTALL | re.MULTILINE)
    assert [name for name, _ in example][:2] == ["settings.py", "deploy.py"]
    for name, text in example:
        (role / name).parent.mkdir(parents=True, exist_ok=True)
        (role / name).write_text(text)
    (tmp_path / "site.yaml").write_text((REPOSITORY / "inventories" / "lab" / "site.yaml").read_text())
    site = load_site(tmp_path)
    assert site.is_on("notice")
    graph = plan(site, (Phase("infrastructure", "", "", (Use("notice", here=("node",)),)),))
    assert [(one.id, one.nodes) for one in graph] == [("notice.notice", site.nodes)]
    module = deploy_module(site_roles(site)["notice"])
    assert [one.name for one in steps_of(module, "__removal__")] == ["remove"]
    node, settings = site.nodes[0], site.settings("notice")
    shown = _rendered(role, SimpleNamespace(site=site, node=node, settings=settings))
    assert shown == f"{site.full_name(node)}: control_plane\n{settings.model_dump()['text']}\n"


def _rendered(role: Path, values: SimpleNamespace) -> str:
    from onprem_mlops.steps import _environment

    return _environment(role / "templates").get_template("notice.j2").render(vars(values))
