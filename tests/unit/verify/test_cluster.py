"""What the client of the Kubernetes API says when the API server refuses."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from onprem_mlops.verify.cluster import Cluster
from tests.unit.verify.conftest import CERTIFIED

WAITING = {"waiting": {"reason": "CreateContainerError", "message": "unresolvable CDI devices"}}
POD = {"status": {"phase": "Pending", "containerStatuses": [{"state": WAITING}]}}


class Refusing(BaseHTTPRequestHandler):
    """An API server whose kubelet does not have the container."""

    def do_GET(self) -> None:
        refused = "/exec?" in self.path
        answer: Any = {"kind": "Status", "message": 'container not found ("look")'} if refused else POD
        body = json.dumps(answer).encode()
        self.send_response(500 if refused else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, *_: object) -> None:
        """Nothing is logged."""


@pytest.fixture
def cluster(issue: Callable[[int], Path]) -> Iterator[Cluster]:
    chain = issue(1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at, names = f"https://{CERTIFIED}:{server.server_port}", {CERTIFIED: ("127.0.0.1",)}
        yield Cluster(at, "", names, chain.read_text(), chain.read_text())
        server.shutdown()


def test_a_container_that_is_not_there_is_told_with_its_reason(cluster: Cluster) -> None:
    with pytest.raises(AssertionError) as refusal:
        cluster.exec("team", "look", "true")
    assert str(refusal.value) == (
        'no command can be run in pod team/look: HTTP 500: container not found ("look"); '
        "it is Pending: waiting CreateContainerError unresolvable CDI devices"
    )
