"""How this process finds the site's names while a check's client runs in it."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import cast

from onprem_mlops.site import Site
from onprem_mlops.verify.suite import resolving

NAMES = {"objects.example.com": (IPv4Address("127.0.0.2"), IPv4Address("127.0.0.1"))}
SITE = cast("Site", SimpleNamespace(names=NAMES))


def test_a_client_goes_on_at_the_next_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, resolving(SITE):
        port = listening.getsockname()[1]
        with socket.create_connection(("objects.example.com", port), 5) as connected:
            assert connected.getpeername() == ("127.0.0.1", port)


def test_other_names_are_looked_up_as_ever() -> None:
    with resolving(SITE):
        assert socket.getaddrinfo("127.0.0.3", 80, type=socket.SOCK_STREAM)[0][4] == ("127.0.0.3", 80)
        assert socket.getaddrinfo(None, 80)
