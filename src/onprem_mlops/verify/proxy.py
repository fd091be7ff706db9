"""Names of the site for clients that ask this machine's resolver: a proxy that knows where the site file puts them.

git, git-lfs, crane, pip and a browser all speak TLS through it end to end, so what they verify stays theirs.
"""

from __future__ import annotations

import selectors
import socket
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from onprem_mlops.verify.controller import Controller, connected

_QUIET_SECONDS = 120.0
_BLOCK = 1 << 16


@contextmanager
def site_proxy(controller: Controller) -> Iterator[Mapping[str, str]]:
    """Environment for a client that shall find the site's names, and nothing else, from this machine."""
    with _Server(controller) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}"
            yield {"HTTPS_PROXY": url, "https_proxy": url, "NO_PROXY": "", "no_proxy": ""}
        finally:
            server.shutdown()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, controller: Controller) -> None:
        super().__init__(("127.0.0.1", 0), _Tunnel)
        self.controller = controller


class _Tunnel(socketserver.BaseRequestHandler):
    """One request: `CONNECT name:port`, and what both sides say from then on."""

    server: _Server

    def handle(self) -> None:
        words = self._head().split()
        if len(words) < 2 or words[0] != "CONNECT":
            self.request.sendall(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n")
            return
        name, _, port = words[1].rpartition(":")
        addresses = self.server.controller.addresses_of(name)
        if addresses == (name,) and not name.replace(".", "").isdigit():
            self.request.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            return
        try:
            with connected(addresses, int(port)) as other:
                self.request.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                self._join(other)
        except OSError:
            self.request.close()  # the client sees its connection end, and says so in its own words

    def _head(self) -> str:
        head = b""
        while b"\r\n\r\n" not in head and len(head) < _BLOCK:
            if not (more := self.request.recv(1)):
                break
            head += more
        return head.decode("latin1")

    def _join(self, other: socket.socket) -> None:
        with selectors.DefaultSelector() as waiting:
            waiting.register(self.request, selectors.EVENT_READ, other)
            waiting.register(other, selectors.EVENT_READ, self.request)
            while ready := waiting.select(_QUIET_SECONDS):
                for key, _ in ready:
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    if not (data := source.recv(_BLOCK)):
                        return
                    key.data.sendall(data)
