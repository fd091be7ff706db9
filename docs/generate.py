"""Writes the pages of docs/reference that follow from the code: `python docs/generate.py`."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from onprem_mlops.atomic import write_atomically
from onprem_mlops.cli import app
from onprem_mlops.paths import REPOSITORY
from onprem_mlops.plan import deploy_module
from onprem_mlops.site import Site, load_site
from onprem_mlops.site.role import ALL, Opening, Role, find_roles
from onprem_mlops.steps import Step, steps_of

FOLDER = REPOSITORY / "docs" / "reference"
_GENERATED = "<!-- Generated with `python docs/generate.py`. Do not edit. -->"


def pages() -> dict[Path, str]:
    """Every generated page and its text."""
    roles = find_roles()
    return {
        FOLDER / "cli.md": cli_page(),
        FOLDER / "checks.md": checks_page(roles),
        FOLDER / "ports.md": ports_page([load_site(REPOSITORY / "inventories" / name) for name in ("lab", "lab-ha")]),
        FOLDER / "roles.md": roles_page(roles),
    }


# --- commands


def commands() -> dict[str, Any]:
    """Every command by its whole name (`lab up`), in the order of the help."""
    return dict(_walk(typer.main.get_command(app), ()))


def _walk(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield " ".join(path), command
        return
    for name, below in command.commands.items():
        yield from _walk(below, (*path, name))


def cli_page() -> str:
    """All commands with their arguments and options."""
    parts = [
        "# Commands",
        _GENERATED,
        "`./mlops COMMAND --help` says the same. Exit codes: [exit-codes.md](exit-codes.md). What `--json` writes: "
        "[json.md](json.md). Environment variables: [at the end](#environment).",
        "A value with `NAME` in `--yes-destroy NAME` is the site's name: what cannot be undone asks for it to be "
        "typed, or given so.",
    ]
    for name, command in commands().items():
        parts += [f"## {name}", f"    {_usage(name, command)}", _sentence(command.help), *_parameters(command)]
    return _page(*parts, _ENVIRONMENT)


_ENVIRONMENT = """\
## Environment

| variable | meaning |
|---|---|
| `MLOPS_INVENTORY` | The site's folder, where `-i` is not given. |
| `MLOPS_IDENTITY` | File of the age or SSH identity that opens the secrets. |
| `MLOPS_STATE` | State folder, default `~/.local/state/onprem-mlops` (or below `$XDG_STATE_HOME`). |
| `MLOPS_CACHE` | Folder of the artifact store, default `~/.cache/onprem-mlops` (or below `$XDG_CACHE_HOME`). |
| `MLOPS_DEBIAN_MIRROR` | Where `mirror build` takes Debian packages; default: where this machine's apt gets them. |
| `https_proxy`, `http_proxy`, `no_proxy` | The company's proxy for downloads of `mirror build`. |
| `VISUAL`, `EDITOR` | What `secrets edit` opens; the first that is set. |"""


def _usage(name: str, command: Any) -> str:
    words = [f"./mlops {name}"]
    words += [_argument(one) for one in command.params if one.param_type_name == "argument"]
    words += [f"{_flag(one)}" for one in command.params if one.param_type_name == "option" and one.required]
    words.append("[OPTIONS]")
    if command.context_settings.get("ignore_unknown_options"):
        words.append("[-- ARGS]")
    return " ".join(words)


def _argument(one: Any) -> str:
    name = (one.metavar or one.name).strip("[]").upper()
    shown = f"{name}…" if one.nargs == -1 else name
    return shown if one.required else f"[{shown}]"


def _flag(one: Any) -> str:
    long = next(flag for flag in one.opts if flag.startswith("--"))
    return long if one.is_flag else f"{long} {_value(one)}"


def _value(one: Any) -> str:
    words = {Path: "FOLDER", int: "NUMBER"}
    return str(one.metavar or words.get(one.type_descriptor.annotation, one.name.upper()))


def _parameters(command: Any) -> list[str]:
    rows = []
    for one in command.params:
        if one.param_type_name == "argument":
            rows.append((f"`{_argument(one)}`", one.help or ""))
        elif one.name != "help":
            short = "".join(f"{flag}, " for flag in one.opts if not flag.startswith("--"))
            rows.append((f"`{short}{_flag(one)}`", f"{one.help or ''}{_more(one)}"))
    return [_table(("argument or option", "meaning"), rows)] if rows else []


def _more(one: Any) -> str:
    more = ["May be given again."] if one.multiple and "again" not in (one.help or "") else []
    if one.default not in (None, False, (), []) and not one.is_flag:
        more.append(f"Default `{one.default}`.")
    return "".join(f" {each}" for each in more)


# --- checks


def checks_page(roles: Mapping[str, Role]) -> str:
    """Every check that `verify` makes, from the suites' docstrings."""
    parts = [
        "# Checks",
        _GENERATED,
        "What `./mlops verify` looks at, role by role. *Each node* means each node that the role runs on. A control in "
        "the last column says what the check is evidence for; it is no claim that the whole of it is met "
        "(see [security](../explanation/security.md)).",
    ]
    for role in roles.values():
        rows = [row for file in sorted((role.folder / "verify").glob("test_*.py")) for row in _checks(file)]
        parts += [f"## {role.name}", _table(("check", "made on", "control"), rows) if rows else "None yet."]
    for folder in sorted((REPOSITORY / "tests" / "phases").glob("*/")):
        rows = [row for file in sorted(folder.glob("test_*.py")) for row in _checks(file)]
        if rows:
            parts += [f"## Phase {folder.name}, across roles", _table(("check", "made on", "control"), rows)]
    return _page(*parts)


def _checks(file: Path) -> Iterator[tuple[str, str, str]]:
    for function in ast.parse(file.read_text()).body:
        if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
            marks = dict(_marks(function))
            where = "the site" if "node" not in {one.arg for one in function.args.args} else "each node"
            if "on" in marks:
                where = f"each of {', '.join(f'`{group}`' for group in marks['on'])}"
            said = _sentence((ast.get_docstring(function) or function.name).partition("\n\n")[0])
            yield said.removesuffix("."), where, ", ".join(marks.get("controls", ()))


def _marks(function: ast.FunctionDef) -> Iterator[tuple[str, tuple[str, ...]]]:
    for one in function.decorator_list:
        if isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute):
            yield one.func.attr, tuple(str(word.value) for word in one.args if isinstance(word, ast.Constant))


# --- ports


def ports_page(sites: Iterable[Site]) -> str:
    """What the roles of any of these sites open, by role."""
    rows = sorted({row for site in sites for row in _openings(site)})
    return _page(
        "# Ports",
        _GENERATED,
        "What nodes take in. Roles declare it (`openings()` in their `settings.py`), the firewall role lets exactly "
        "this in and drops the rest, and `./mlops verify --role firewall` tries from every machine of the site. The "
        "table is that of `inventories/lab` and `inventories/lab-ha` together: the lines for etcd and for the moving "
        "address are those of three control planes, the lines of the services beside the cluster those of "
        "`inventories/lab`, where they share a node of `services`. A service whose own group has nodes (`database`, "
        "`storage`, `git`, `tracking`, `gateway`) is open there instead. What `settings.gateway.clients` names reaches "
        "the gateway's ports as well; without role gateway, nodes and pods reach object storage, Gitea and MLflow "
        "themselves.",
        _table(("role", "port", "on", "open to", "for"), rows),
        "`controller`: the machine that deploys, and `settings.firewall.admin_networks`. `nodes`: every node of the "
        "site. `pods`: the pods' network. Everything else is a group of nodes. Answers to connections that a node "
        "opened itself, ICMP (pings at a limited rate) and loopback pass as well. Packets to pods are not filtered "
        "here: NetworkPolicies decide about them.",
    )


def _openings(site: Site) -> Iterator[tuple[str, str, str, str, str]]:
    """Lines of the table: role, port, where, from where, why."""
    found: dict[tuple[str, Opening], set[str]] = {}
    for node in site.nodes:
        for role, settings in site.role_settings.items():
            for opening in settings.openings(site, node):
                found.setdefault((role, opening), set()).add(node.name)
    for (role, one), names in found.items():
        sources = (_source(site, source) for source in one.sources)
        yield f"`{role}`", _port(one), _where(site, names), ", ".join(sources), _why(site, one)


def _why(site: Site, one: Opening) -> str:
    names = rf"\S+\.{re.escape(site.domain)}"
    return re.sub(names, lambda found: f"`{found[0].replace(site.domain, '<domain>')}`", one.why)


def _source(site: Site, source: str) -> str:
    """A source as people read it: where it is a node's address, what the node is."""
    return next((_where(site, {node.name}) for node in site.nodes if source == f"{node.address}/32"), source)


def _port(one: Opening) -> str:
    return one.protocol.upper() if one.port is None else f"{one.port}/{one.protocol}"


def _where(site: Site, names: set[str]) -> str:
    if names == {node.name for node in site.nodes}:
        return "every node"
    for size in (1, 2):
        for groups in _groups(site, size):
            if {node.name for node in site.in_group(*groups)} == names:
                return ", ".join(groups)
    return ", ".join(sorted(names))


def _groups(site: Site, size: int) -> Iterator[tuple[str, ...]]:
    if size == 1:
        yield from ((group,) for group in site.groups)
    else:
        yield from ((one, other) for one in site.groups for other in site.groups if one < other)


# --- roles


def roles_page(roles: Mapping[str, Role]) -> str:
    """What each role is, and its steps."""
    parts = [
        "# Roles",
        _GENERATED,
        "A role is a folder `roles/<role>/`: all of one component. Its settings: "
        "[site-file.md](site-file.md#settings). Its ports: [ports.md](ports.md). Its checks: [checks.md](checks.md). "
        "How to write one: [add a role](../how-to/add-a-role.md).",
    ]
    for role in roles.values():
        parts += [f"## {role.name}", role.summary, _about(role), _steps(role)]
    return _page(*parts)


def _about(role: Role) -> str:
    groups = "every node" if ALL in role.settings.groups else ", ".join(f"`{one}`" for one in role.settings.groups)
    lines = [f"- Runs on: {groups}."]
    if role.settings.requires:
        lines.append(f"- Needs: {_names(role.settings.requires)}.")
    if artifacts := tuple(role.settings().artifacts()):
        lines.append(f"- Lays down these artifacts: {_names(artifacts)}.")
    return "\n".join(lines)


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{one}`" for one in names)


def _steps(role: Role) -> str:
    module = deploy_module(role)
    rows = [(f"`{one.name}`", _on(one), _doc(one)) for one in steps_of(module)]
    rows += [(f"`{one.name}` (before any run)", _on(one), _doc(one)) for one in steps_of(module, "__admission__")]
    rows += [(f"`{one.name}` (removal)", _on(one), _doc(one)) for one in steps_of(module, "__removal__")]
    return _table(("step", "on", "what it does"), rows)


def _on(step: Step) -> str:
    groups = "every node" if ALL in step.on else ", ".join(step.on)
    return groups if step.only is None else f"{step.only} of {groups}"


def _doc(step: Step) -> str:
    return _sentence(inspect.getdoc(step.function) or "")


# --- Markdown


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [titles, tuple("---" for _ in titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _page(*parts: str) -> str:
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write what differs, and say so."""
    for path, text in pages().items():
        if not path.exists() or path.read_text() != text:
            write_atomically(path, text.encode(), 0o644)
            sys.stdout.write(f"wrote {path.relative_to(REPOSITORY)}\n")


if __name__ == "__main__":
    main()
