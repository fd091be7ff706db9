"""What suites ask of every service with TLS: real handshakes on the loopback."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from onprem_mlops.verify.suite import Controller, NodeHost, assert_certificate, assert_old_tls_is_refused
from tests.unit.verify.conftest import CERTIFIED

# Old TLS is what these are about.
pytestmark = pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")

HOST = cast("NodeHost", SimpleNamespace(name="s1", address="127.0.0.1"))


class Trusting(Controller):
    """A controller whose site's authority is the certificate itself."""

    def __init__(self, chain: Path) -> None:
        self._chain = chain

    @property
    def authority(self) -> Path:
        return self._chain


@contextmanager
def serving(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Port of a server that answers each connection so."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    client, _ = listening.accept()
                except OSError:
                    return
                with client, suppress(OSError):
                    answer(client)

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)


def tls(chain: Path, lowest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2) -> Callable[[socket.socket], None]:
    """Shakes hands, from a version on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = lowest
    context.load_cert_chain(chain)

    def answer(plain: socket.socket) -> None:
        with context.wrap_socket(plain, server_side=True) as wrapped:
            wrapped.recv(1)

    return answer


def hanging_up(plain: socket.socket) -> None:
    """Ends every handshake without a word."""
    plain.recv(4096)


def test_a_good_certificate(issue: Callable[[int], Path]) -> None:
    chain = issue(60)
    with serving(tls(chain)) as port:
        assert_certificate(Trusting(chain), HOST, port, CERTIFIED)


def test_a_certificate_that_ends_soon(issue: Callable[[int], Path]) -> None:
    chain = issue(29)
    with serving(tls(chain)) as port, pytest.raises(AssertionError, match=r"s1: .*git\.example\.com.* ends in 29 days"):
        assert_certificate(Trusting(chain), HOST, port, CERTIFIED)


def test_a_certificate_without_one_of_the_names(issue: Callable[[int], Path]) -> None:
    chain = issue(60)
    with serving(tls(chain)) as port, pytest.raises(AssertionError, match=r"s1: a client .* refuses s3\.example\.com"):
        assert_certificate(Trusting(chain), HOST, port, CERTIFIED, "s3.example.com")


def test_a_service_that_asks_for_tls_first(issue: Callable[[int], Path]) -> None:
    chain = issue(60)

    def answer(plain: socket.socket) -> None:
        assert plain.recv(8) == b"STARTTLS"
        plain.sendall(b"+")
        tls(chain)(plain)

    def starttls(plain: socket.socket) -> None:
        plain.sendall(b"STARTTLS")
        assert plain.recv(1) == b"+"

    with serving(answer) as port:
        assert_certificate(Trusting(chain), HOST, port, CERTIFIED, starttls=starttls)
        assert_old_tls_is_refused(Trusting(chain), HOST, port, CERTIFIED, starttls=starttls)


def test_old_tls_is_refused(issue: Callable[[int], Path]) -> None:
    chain = issue(60)
    with serving(tls(chain)) as port:
        assert_old_tls_is_refused(Trusting(chain), HOST, port, CERTIFIED)


def test_old_tls_is_spoken(issue: Callable[[int], Path]) -> None:
    chain = issue(60)
    old = tls(chain, ssl.TLSVersion.TLSv1)
    with serving(old) as port, pytest.raises(AssertionError, match=r"s1: .* speaks TLSv1\.1"):
        assert_old_tls_is_refused(Trusting(chain), HOST, port, CERTIFIED)


def test_silence_is_no_refusal(issue: Callable[[int], Path]) -> None:
    controller = Trusting(issue(60))
    with serving(hanging_up) as port:
        with pytest.raises(AssertionError, match="not because the server"):
            assert_old_tls_is_refused(controller, HOST, port, CERTIFIED)
        # Nor where a server may be silent: it must speak newer TLS.
        with pytest.raises(ssl.SSLError):
            assert_old_tls_is_refused(controller, HOST, port, CERTIFIED, silently=True)
