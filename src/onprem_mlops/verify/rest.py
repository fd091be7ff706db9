"""A service's own REST API as checks ask it: on the service's node, with credentials that stay there."""

from __future__ import annotations

import base64
import json
import shlex
from dataclasses import dataclass
from itertools import count
from typing import Any

from onprem_mlops.verify.backend import NodeHost

SYSTEM_STORE = "/etc/ssl/certs/ca-certificates.crt"
"""Authorities that a node trusts, the site's among them."""
PAGE = 50
"""Entries of a list that Gitea gives at once, at most."""


@dataclass(frozen=True)
class NodeApi:
    """An API as its own node reaches it."""

    host: NodeHost
    url: str
    """What paths are appended to."""
    header: str
    """Path on the node of a file with the header that authenticates."""

    def fetch(self, method: str, path: str, body: object = None, login: str = "") -> bytes:
        """The answer. AssertionError with the service's own words if it refuses.

        Args:
            method: of the request.
            path: below the API's address.
            body: what is sent, as JSON; None for nothing.
            login: `name:password` to ask as somebody, in the place of the header.
        """
        # Over standard input, where no list of processes shows it. JSON's strings are those of curl's configuration.
        given = [f"user = {json.dumps(login)}"] if login else []
        given += [f"data = {json.dumps(json.dumps(body))}"] if body is not None else []
        who = "" if login else f"--header @{shlex.quote(self.header)} "
        # In base64: an answer may be a file.
        command = (
            f"curl -sS --fail-with-body --location --max-time 20 --cacert {SYSTEM_STORE} --request {method} {who}"
            f"--header 'Content-Type: application/json' --config - {shlex.quote(self.url + path)} | base64 -w0; "
            "exit ${PIPESTATUS[0]}"
        )
        done = self.host.feed(f"bash -c {shlex.quote(command)}", "".join(f"{line}\n" for line in given))
        answer = base64.b64decode(done.stdout)
        said = f"{answer[-300:].decode(errors='replace')} {done.stderr[-200:]}".strip()
        assert done.rc == 0, f"{self.host.name}: {method} {path}: {said}"
        return answer

    def ask(self, method: str, path: str, body: object = None, login: str = "") -> Any:
        """The answer as JSON; None if it is empty."""
        answer = self.fetch(method, path, body, login)
        return json.loads(answer) if answer.strip() else None

    def listed(self, path: str, within: str = "") -> list[Any]:
        """All pages of a list, as Gitea cuts it into pages.

        Args:
            path: below the API's address.
            within: the field of the answer that the list is in; empty if the answer is the list.
        """
        found: list[Any] = []
        for page in count(1):
            answer = self.ask("GET", f"{path}?limit={PAGE}&page={page}")
            part: list[Any] = (answer[within] if within else answer) or []
            found += part
            if len(part) < PAGE:
                break
        return found
