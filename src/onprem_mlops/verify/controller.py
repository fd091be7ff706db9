"""This machine as a client of the site: TLS with the site's authority, HTTPS requests, connections to ports."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509

from onprem_mlops.site import Site
from onprem_mlops.site.material import authority_file
from onprem_mlops.verify import ports
from onprem_mlops.verify.outcomes import NotChecked

REQUEST_SECONDS = 10.0

StartTLS = Callable[[socket.socket], None]
"""Asks for TLS on a fresh connection, where a protocol begins without it."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a server showed in a TLS handshake that succeeded."""

    version: str
    certificate: x509.Certificate


@dataclass(frozen=True, slots=True)
class Response:
    """The answer to an HTTP request."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON. AssertionError if it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise AssertionError(f"HTTP {self.status} with a body that is not JSON: {self.body[:200]!r}") from None

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode(errors="replace")


class AddressedHTTPS(http.client.HTTPSConnection):
    """HTTPS to fixed addresses under a name, so that nothing depends on this machine's name resolution."""

    def __init__(self, name: str, port: int, addresses: tuple[str, ...], context: ssl.SSLContext) -> None:
        super().__init__(name, port, timeout=REQUEST_SECONDS, context=context)
        self._addresses = addresses
        self._tls = context

    def connect(self) -> None:
        """Connect to the first address that answers, and shake hands under the name."""
        self.sock = self.tls_socket()

    def tls_socket(self) -> ssl.SSLSocket:
        """A fresh connection of its own."""
        plain = connected(self._addresses, self.port)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._tls.wrap_socket(plain, server_hostname=self.host)


class Controller:
    """This machine, trusting the site's authority and nothing else."""

    def __init__(self, site: Site) -> None:
        self._site = site

    @property
    def authority(self) -> Path:
        """The certificate of the site's authority. NotChecked if it is not there yet."""
        path = authority_file(self._site)
        if not path.is_file():
            raise NotChecked(f"{path} does not exist, so nothing served with TLS can be checked")
        return path

    def context(self) -> ssl.SSLContext:
        """TLS settings that trust the site's authority only."""
        return ssl.create_default_context(cafile=str(self.authority))

    def addresses_of(self, name: str) -> tuple[str, ...]:
        """The addresses that the site file gives a name; an address stands for itself."""
        return tuple(map(str, self._site.names.get(name, (name,))))

    def handshake(
        self,
        address: str,
        port: int,
        name: str,
        *,
        highest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        starttls: StartTLS | None = None,
    ) -> Served:
        """Shake hands. ssl.SSLError if the server refuses or its certificate is not good for the name."""
        context = self.context()
        if highest < ssl.TLSVersion.TLSv1_2:
            # This side must be willing, or its own refusal would be taken for the server's.
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.set_ciphers("ALL:@SECLEVEL=0")
        context.maximum_version = highest
        with socket.create_connection((address, port), REQUEST_SECONDS) as plain:
            if starttls is not None:
                starttls(plain)
            with context.wrap_socket(plain, server_hostname=name) as wrapped:
                leaf = wrapped.getpeercert(binary_form=True)
                assert leaf is not None
                return Served(wrapped.version() or "", x509.load_der_x509_certificate(leaf))

    def request(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Response:
        """Make one HTTPS request to a name of the site. OSError (ssl.SSLError included) if it cannot be made."""
        at = urlsplit(url)
        assert at.scheme == "https" and at.hostname
        connection = AddressedHTTPS(at.hostname, at.port or 443, self.addresses_of(at.hostname), self.context())
        try:
            path = f"{at.path or '/'}{'?' + at.query if at.query else ''}"
            return exchange(connection, method, path, headers or {}, body)
        finally:
            connection.close()

    def get(self, url: str, **headers: str) -> Response:
        """GET; keyword ``accept_type`` becomes the header ``Accept-Type``."""
        return self.request("GET", url, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def scan(self, targets: Sequence[ports.Target]) -> dict[ports.Target, ports.Answer]:
        """Try to connect from this machine to every target at once."""
        return ports.scan(targets)


def connected(addresses: tuple[str, ...], port: int) -> socket.socket:
    """A connection to the first of the addresses that answers, as every client makes it. OSError if none does."""
    *others, last = addresses
    for address in others:
        with contextlib.suppress(OSError):
            return socket.create_connection((address, port), REQUEST_SECONDS)
    return socket.create_connection((last, port), REQUEST_SECONDS)


def exchange(
    connection: http.client.HTTPSConnection, method: str, path: str, headers: Mapping[str, str], body: bytes | None
) -> Response:
    """One request and its whole answer."""
    connection.request(method, path, body=body, headers=dict(headers))
    answer = connection.getresponse()
    data = answer.read()
    return Response(answer.status, {name.lower(): value for name, value in answer.getheaders()}, data)
