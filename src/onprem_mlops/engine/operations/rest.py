"""Objects of a service's own REST API: read many at once on the service's node, compared, and made or changed.

The credentials are a file on that node, a header for curl; none travel. What is sent goes through standard input.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyinfra.context import host

from onprem_mlops.engine.facts import Reading
from onprem_mlops.engine.operation import Command, operation
from onprem_mlops.events import Diff
from onprem_mlops.site import Hidden

Body = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Api:
    """An API as its own node reaches it."""

    url: str
    """What paths are appended to."""
    header: str
    """Path on the node of a file with the header that authenticates."""
    authority: str
    """Path on the node of the certificate that the service's is signed by."""

    @property
    def curl(self) -> str:
        """Shell: curl with the credentials and nothing on standard output yet."""
        return (
            f"curl --silent --max-time 30 --cacert {shlex.quote(self.authority)} --header @{shlex.quote(self.header)}"
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API answered: HTTP status (0: nothing listens, or no credentials), and the JSON of a good answer."""

    status: int
    body: Any = None

    @property
    def found(self) -> bool:
        return self.status == 200


class Answers(Reading[Mapping[str, Answer]]):
    """Several paths of an API, asked over one connection."""

    def command(self, api: Api, paths: tuple[str, ...]) -> str:
        # Each answer ends with its number and status, whatever is in it: a body of JSON holds no bare line break.
        urls = " ".join(shlex.quote(api.url + path) for path in paths)
        return f"{api.curl} --globoff --write-out '\\n=%{{urlnum}} %{{http_code}}\\n' {urls} 2>/dev/null; echo; true"

    def process(self, output: Iterable[str]) -> Mapping[str, Answer]:
        found: dict[str, Answer] = {}
        text = ""
        for line in output:
            if not line.startswith("="):
                text = line or text
                continue
            number, _, status = line[1:].partition(" ")
            body = json.loads(text) if status.startswith("2") and text else None
            found[number] = Answer(int(status), body)
            text = ""
        return found

    @staticmethod
    def default() -> Mapping[str, Answer]:
        return {}


def read(api: Api, *paths: str) -> Mapping[str, Answer]:
    """Ask paths of an API on the node that the current step runs on, in one round trip; what did not answer is 0."""
    if not paths:
        return {}
    answers: Mapping[str, Answer] = host.get_fact(Answers, api=api, paths=paths)
    return {path: answers.get(str(number), Answer(0)) for number, path in enumerate(paths)}


@operation
def present(
    api: Api,
    now: Body | None,
    wanted: Body,
    *,
    what: str,
    create: tuple[str, str],
    update: tuple[str, str] | None = None,
    at_first: Body | None = None,
    always: Body | None = None,
) -> Iterator[Command]:
    """An object that has at least these fields; others stay as they are.

    Args:
        api: where.
        now: the object as it was read, None if there is none.
        wanted: fields and values.
        what: short name for the diff, such as "team data".
        create: method and path that make it.
        update: method and path that change it; None if what is there is never changed.
        at_first: more fields for its making; a `Hidden` value is never shown.
        always: more fields that both want and that reading does not give back.
    """
    if now is None:
        method, path = create
        yield _call(
            api, method, path, {**(always or {}), **wanted, **(at_first or {})}, Diff(what, None, shown(wanted))
        )
    elif update is not None and any(now.get(key) != value for key, value in wanted.items()):
        method, path = update
        before = shown({key: now.get(key) for key in wanted})
        yield _call(api, method, path, {**(always or {}), **wanted}, Diff(what, before, shown(wanted)))


@operation
def called(api: Api, method: str, path: str, body: Body | None = None, *, what: str) -> Iterator[Command]:
    """A request that is made each time; the caller has seen that it is needed."""
    yield _call(api, method, path, body or {}, Diff(what, None, shown(body or {})))


def shown(body: Body) -> str:
    """A body for people, without what is hidden."""
    return "".join(
        f"{key}: {'(hidden)' if isinstance(value, Hidden) else json.dumps(value, ensure_ascii=False)}\n"
        for key, value in sorted(body.items())
    )


def _call(api: Api, method: str, path: str, body: Body, diff: Diff) -> Command:
    plain = {key: value.reveal() if isinstance(value, Hidden) else value for key, value in body.items()}
    return Command(
        # The answer tells why something was refused; it is shown only then.
        f"answer=$({api.curl} --globoff --show-error --request {method} --header 'Content-Type: application/json' "
        f"--data-binary @- --write-out '\\n%{{http_code}}' {shlex.quote(api.url + path)} 2>&1); "
        'case "${answer##*[!0-9]}" in 2??) ;; '
        f'*) echo {shlex.quote(f"{method} {path}:")} "$answer" | head -c 2000 >&2; exit 1;; esac',
        stdin=json.dumps(plain) + "\n",
        diff=diff,
    )
