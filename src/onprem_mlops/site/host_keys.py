"""Reading the host keys of machines, for a person to confirm. Nothing here trusts what it reads."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address

from onprem_mlops.errors import RequestError
from onprem_mlops.prerequisites import require
from onprem_mlops.site import fields

_SECONDS = 5


def scan_host_keys(addresses: Iterable[IPv4Address], port: int = 22) -> Mapping[IPv4Address, str]:
    """The ed25519 host keys that the machines at ``addresses`` show now, all asked at once.

    RequestError naming every machine that does not answer.
    """
    wanted = list(addresses)
    if not wanted:
        return {}
    require("ssh")
    command = ["ssh-keyscan", "-T", str(_SECONDS), "-t", "ed25519", "-p", str(port), *map(str, wanted)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS * 4 + len(wanted), check=False)
    found = dict(filter(None, map(_parse, answer.stdout.splitlines())))
    if silent := [str(address) for address in wanted if address not in found]:
        raise RequestError(
            f"no ed25519 host key from {', '.join(silent)} on port {port}",
            "Are they on, is sshd running there, and may this machine reach them? Or give keys with --host-key.",
        )
    return found


def _parse(line: str) -> tuple[IPv4Address, str] | None:
    """Address and key of one line ``address ssh-ed25519 AAAA…`` (``[address]:port`` for another port than 22)."""
    host, _, key = line.strip().partition(" ")
    if line.startswith("#") or not key:
        return None
    return IPv4Address(host.removeprefix("[").partition("]")[0]), fields.host_key(key)
