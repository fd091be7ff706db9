"""Names of the site for clients that are libraries in this process, such as boto3."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from onprem_mlops.site import Site


@contextmanager
def resolving(site: Site) -> Iterator[None]:
    """In here this process finds the site's names at all the addresses that the site file gives them, as nodes do."""
    addresses = {name: tuple(map(str, at)) for name, at in site.names.items()}
    really = socket.getaddrinfo

    def look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        return [one for at in addresses.get(host, (host,)) for one in really(at, *arguments, **options)]

    with patch("socket.getaddrinfo", look_up):
        yield
