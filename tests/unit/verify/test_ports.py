"""Listeners as `ss` lists them, and answers of real ports."""

from __future__ import annotations

import socket

import pytest

from onprem_mlops.verify.ports import Listener, _listener, scan


@pytest.mark.parametrize(
    ("line", "listener", "loopback"),
    [
        (
            'tcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:* users:(("sshd",pid=538,fd=3))',
            Listener("tcp", "0.0.0.0", 22, "sshd", 538),  # noqa: S104
            False,
        ),
        ("tcp LISTEN 0 4096 *:6443 *:*", Listener("tcp", "*", 6443, "", None), False),
        ("udp UNCONN 0 0 127.0.0.53%lo:53 0.0.0.0:*", Listener("udp", "127.0.0.53", 53, "", None), True),
        ("tcp LISTEN 0 1 [::ffff:127.0.0.1]:99 *:*", Listener("tcp", "127.0.0.1", 99, "", None), True),
        ("tcp LISTEN 0 1 [::1]:99 [::]:*", Listener("tcp", "::1", 99, "", None), True),
        (
            'udp UNCONN 0 0 10.0.0.1:123 0.0.0.0:* users:(("chronyd",pid=1,fd=2),("chronyd",pid=2,fd=2))',
            Listener("udp", "10.0.0.1", 123, "chronyd", 1),
            False,
        ),
    ],
)
def test_listeners(line: str, listener: Listener, loopback: bool) -> None:
    assert _listener(line) == listener
    assert _listener(line).loopback is loopback


def test_scan_tells_open_from_refused(closed_port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = ("127.0.0.1", int(server.getsockname()[1]))
        gone = ("127.0.0.1", closed_port)
        assert scan([here, gone]) == {here: "open", gone: "refused"}


def test_scan_tells_silent() -> None:
    # A backlog that is full: the kernel drops further attempts, as a packet filter does.
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        target = ("127.0.0.1", int(server.getsockname()[1]))
        with socket.create_connection(target):
            assert scan([target], seconds=0.3) == {target: "silent"}
