"""The proxy that gives clients the site's names: real sockets on the loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import pytest

from onprem_mlops.verify.suite import site_proxy

if TYPE_CHECKING:
    from onprem_mlops.verify.suite import Controller


class Names:
    """What a controller knows of a site with one name."""

    def addresses_of(self, name: str) -> tuple[str, ...]:
        # Nobody listens at the first, which is a node that is away.
        return ("127.0.0.2", "127.0.0.1") if name == "git.example.com" else (name,)


@pytest.fixture
def echo() -> Iterator[int]:
    """Port of a server that says in capitals what it is told, once."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            client, _ = listening.accept()
            with client:
                client.sendall(client.recv(100).upper())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]


def asked(request: str, then: bytes = b"") -> bytes:
    """All that the proxy, and who is behind it, answer."""
    with site_proxy(cast("Controller", Names())) as environment:
        port = int(environment["HTTPS_PROXY"].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 5) as client:
            client.sendall(f"{request}\r\n\r\n".encode())
            answer = client.recv(100)
            if then:
                client.sendall(then)
                answer += client.recv(100)
            return answer


def test_a_name_of_the_site_is_found(echo: int) -> None:
    assert asked(f"CONNECT git.example.com:{echo} HTTP/1.1", b"hello").endswith(b"\r\n\r\nHELLO")


@pytest.mark.parametrize(
    ("request_line", "status"),
    [("CONNECT example.org:443 HTTP/1.1", b"403"), ("GET http://git.example.com/ HTTP/1.1", b"405")],
)
def test_nothing_else_is(request_line: str, status: bytes) -> None:
    assert asked(request_line).split()[1] == status
