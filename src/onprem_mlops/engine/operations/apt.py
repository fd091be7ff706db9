"""Debian packages."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from pyinfra.context import host

from onprem_mlops.engine.facts import Packages, Probe
from onprem_mlops.engine.operation import Command, operation

APT = (
    "DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l apt-get -q -y "
    "-o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold"
)
"""apt-get that waits for another apt, keeps configuration files that a person changed and asks nothing."""

RECORD = "/var/lib/onprem-mlops/packages"
"""Names of the packages that roles installed on a node, one a line; what was there before is not in it."""


def _repair() -> Iterator[Command]:
    # A transaction that was cut off (a reboot in the middle) leaves packages half configured; apt refuses to go on.
    if host.get_fact(Probe, command='[ -z "$(dpkg --audit)" ]').status == 1:
        yield Command("DEBIAN_FRONTEND=noninteractive dpkg --configure -a --force-confold")


@operation
def packages(*names: str) -> Iterator[Command]:
    """These packages are installed, in the version that the node's sources offer; installed ones are left alone."""
    yield from _repair()
    installed: dict[str, str] = host.get_fact(Packages)
    missing = [name for name in names if name not in installed]
    if missing:
        wanted = " ".join(shlex.quote(name) for name in missing)
        note = f"mkdir -p {RECORD.rpartition('/')[0]} && printf '%s\\n' {wanted} >>{RECORD}"
        yield Command(f"{note} && {APT} update && {APT} --no-install-recommends install {wanted}", timeout=1800)


@operation
def purged(*names: str) -> Iterator[Command]:
    """These packages, and what was installed only for them, are gone with their configuration.

    Only those that `packages` installed: what the node had before is not ours to take away.
    """
    installed: dict[str, str] = host.get_fact(Packages)
    ours = host.get_fact(Probe, command=f"cat {RECORD}").text.split()
    present = [name for name in names if name in installed and name in ours]
    if present:
        wanted = " ".join(shlex.quote(name) for name in present)
        forget = "".join(f" -e {shlex.quote(name)}" for name in present)
        yield Command(
            f"{APT} --allow-change-held-packages --autoremove purge {wanted} "
            f"&& {{ grep -vxF{forget} {RECORD} >{RECORD}.new; mv -fT {RECORD}.new {RECORD}; }}",
            timeout=1800,
        )


@operation
def held(*names: str) -> Iterator[Command]:
    """These packages stay as they are when others are upgraded."""
    installed: dict[str, str] = host.get_fact(Packages)
    loose = [name for name in names if name in installed and f"held:{name}" not in installed]
    if loose:
        yield Command("apt-mark hold " + " ".join(shlex.quote(name) for name in loose))
