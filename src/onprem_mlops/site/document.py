"""A YAML file as plain values plus where each of them stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, StringMark, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from onprem_mlops.errors import RequestError

Loc = tuple[str | int, ...]
"""A way into the document: keys and list indices."""

_PLAIN_TAGS = {"str", "int", "float", "bool", "null", "map", "seq", "timestamp", "binary"}


@dataclass(frozen=True, order=True)
class Position:
    """Line and column, counted from 1 as editors do."""

    line: int
    column: int


@dataclass(frozen=True)
class PlacedProblem:
    """One thing that is wrong in a file, and where."""

    path: str
    line: int
    column: int
    message: str
    """"what is wrong; what would be right"."""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: {self.message}"


class SiteError(RequestError):
    """The site file is wrong; nothing was touched. ``problems`` are all of them, in the order of the file."""

    def __init__(self, problems: tuple[PlacedProblem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


@dataclass
class Document:
    """The values of a YAML file, the positions of keys and values, and the problems found so far."""

    path: str
    values: object = None
    keys: dict[Loc, Position] = field(default_factory=dict)
    starts: dict[Loc, Position] = field(default_factory=dict)
    _problems: dict[tuple[Position, str], None] = field(default_factory=dict)

    def report(self, loc: Loc, message: str, *, at_key: bool = False) -> None:
        """Note a problem at ``loc``, or at the nearest place above that the file has."""
        self.report_at(self.position(loc, at_key=at_key), message)

    def report_at(self, position: Position, message: str) -> None:
        """Note a problem at a position."""
        self._problems[(position, _printable(message))] = None

    def position(self, loc: Loc, *, at_key: bool = False) -> Position:
        """Where ``loc`` stands. For what is not in the file: the key it would belong under."""
        if not at_key and loc in self.starts:
            return self.starts[loc]
        while loc:
            if loc in self.keys:
                return self.keys[loc]
            if loc in self.starts:
                return self.starts[loc]
            loc = loc[:-1]
        return self.starts.get((), Position(1, 1))

    def has(self, loc: Loc) -> bool:
        """Whether the file has something at ``loc``."""
        return loc in self.starts

    def at(self, loc: Loc) -> object:
        """The value at ``loc``, None if there is none."""
        value = self.values
        for step in loc:
            if isinstance(value, dict) or (isinstance(value, list) and isinstance(step, int) and step < len(value)):
                value = value.get(step) if isinstance(value, dict) else value[int(step)]
            else:
                return None
        return value

    @property
    def problems(self) -> tuple[PlacedProblem, ...]:
        """All problems so far, in the order of the file."""
        ordered = sorted(self._problems, key=lambda found: found[0])
        return tuple(PlacedProblem(self.path, at.line, at.column, message) for at, message in ordered)

    def refuse_if_wrong(self) -> None:
        """SiteError if any problem was noted."""
        if self.problems:
            raise SiteError(self.problems)


def read_document(file: Path) -> Document:
    """Read a YAML file. SiteError if it is no YAML; RequestError if it cannot be read."""
    path = _shown(file)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RequestError(f"{path} does not exist", "Make a site with: ./mlops init NAME") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read: {error}", "It must be a text file in UTF-8.") from None
    return read_text(text, path)


def read_text(text: str, path: str) -> Document:
    """Read YAML. SiteError if it is none or has aliases; ``path`` is how problems name it.

    Duplicate keys, tags and merge keys are noted as problems in the document, so that they come up together with
    everything else that is wrong.
    """
    document = Document(path)
    try:
        root = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        document.report_at(_mark(error.problem_mark or error.context_mark), _syntax_message(error))
    except YAMLError as error:
        line = str(error).splitlines()[0] if str(error) else "it cannot be parsed"
        document.report_at(Position(1, 1), f"not YAML: {line}; write it in UTF-8 without control characters")
    except RecursionError:
        document.report_at(Position(1, 1), "the file is nested too deeply to read; no list here holds a list")
    else:
        if root is not None:
            document.values = _Reader(document).value(root, ())
    if document.values is None:
        document.refuse_if_wrong()
    return document


def _shown(file: Path) -> str:
    """The path as a person standing in the current folder would write it."""
    absolute = file.absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(file)


def _printable(message: str) -> str:
    """One line without control characters: what stands in a file must not steer a terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in message)


def _mark(mark: StringMark | None) -> Position:
    return Position(mark.line + 1, mark.column + 1) if mark is not None else Position(1, 1)


def _syntax_message(error: MarkedYAMLError) -> str:
    """What is wrong with the syntax, without the line itself: it may hold a secret."""
    context = f"{error.context}: " if error.context else ""
    problem = (error.problem or "cannot be parsed").replace("'\\t' that", "a tab, which")
    hint = (
        "indent with spaces"
        if "\\t" in (error.problem or "")
        else "look for a missing colon, quote or bracket, or a wrong indent"
    )
    return f"not YAML: {context}{problem}; {hint}"


class _Reader:
    """Turns YAML nodes into plain values, noting where each key and value stands."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._seen: set[int] = set()

    def value(self, node: Node, loc: Loc) -> object:
        """The plain value of ``node``, which stands at ``loc``."""
        if id(node) in self._seen:
            # What the place should hold is not known, so whatever else came up would mislead: nothing but this.
            self._document.report(loc, "aliases (`*name`) are not used here; write the value out")
            self._document.refuse_if_wrong()
        self._seen.add(id(node))
        # The parser puts a value that is not there behind the next token; its key is where a person looks.
        absent = isinstance(node, ScalarNode) and node.start_mark.index == node.end_mark.index
        self._document.starts[loc] = self._document.position(loc) if absent else _mark(node.start_mark)
        tag = str(node.tag or "").rpartition(":")[2]
        if tag not in _PLAIN_TAGS:
            self._document.report(loc, f"the tag {node.tag} is not used here; write a plain value")
        if isinstance(node, MappingNode):
            return dict(self._items(node, loc))
        if isinstance(node, SequenceNode):
            return [self.value(item, (*loc, index)) for index, item in enumerate(node.value)]
        return self._scalar(str(node.value), tag)

    def _items(self, node: MappingNode, loc: Loc) -> Iterator[tuple[str, object]]:
        first: dict[str, Position] = {}
        for key_node, value_node in node.value:
            position = _mark(key_node.start_mark)
            if not isinstance(key_node, ScalarNode):
                self._document.report_at(position, "a key must be text; write `key: value`")
                continue
            key = str(key_node.value)
            if key in first:
                self._document.report_at(
                    position,
                    f"`{key}` is here a second time (first on line {first[key].line}); keep one of them",
                )
                continue
            first[key] = position
            if key == "<<":
                self._document.report_at(position, "merge keys (`<<`) are not used here; write the keys out")
                continue
            self._document.keys[(*loc, key)] = position
            yield key, self.value(value_node, (*loc, key))

    @staticmethod
    def _scalar(text: str, tag: str) -> object:
        try:
            match tag:
                case "int":
                    return int(text, 0 if text.lstrip("+-").lower().startswith(("0x", "0o")) else 10)
                case "float":
                    return float(text)
                case "bool":
                    return text.lower() == "true"
                case "null":
                    return None
        except ValueError:
            return text
        return text
