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
"""Names of the packages that roles installed on a node, and what these brought along; one a line."""

_NEW = "sed -n 's/^Inst \\([^ ]*\\) (.*/\\1/p'"
"""Filter: names that a simulated `apt-get install` would newly install. An upgrade has its old version in brackets."""

_ORPHANS = (
    f"{APT} -s -o APT::AutoRemove::RecommendsImportant=false -o APT::AutoRemove::SuggestsImportant=false autoremove "
    f"| sed -n 's/^Remv \\([^ ]*\\).*/\\1/p' | grep -xFf {RECORD}"
)
"""Names that came along with our packages and that nothing needs any more. Other orphans are not ours."""

_FORGET = (
    f"dpkg-query -W -f '${{db:Status-Abbrev}}${{Package}}\\n' | sed -n 's/^.i *//p' "
    f"| grep -xFf {RECORD} >{RECORD}.new; "
    f"if [ -s {RECORD}.new ]; then mv -fT {RECORD}.new {RECORD}; else rm -f {RECORD} {RECORD}.new; fi"
)
"""Keep only names in the record that are installed: what a person installs later is theirs."""


def _repair() -> Iterator[Command]:
    # A transaction that was cut off (a reboot in the middle) leaves packages half configured; apt refuses to go on.
    if host.get_fact(Probe, command='[ -z "$(dpkg --audit)" ]').status == 1:
        yield Command(
            "until said=$(DEBIAN_FRONTEND=noninteractive dpkg --configure -a --force-confold 2>&1); do "
            # dpkg has no option to wait for its lock; whoever holds it may be the one who is not done yet.
            'case $said in *lock*) sleep 2;; *) echo "$said" >&2; exit 1;; esac; done',
            timeout=600,
        )


@operation
def packages(*names: str) -> Iterator[Command]:
    """These packages are installed, in the version that the node's sources offer; installed ones are left alone."""
    yield from _repair()
    installed: dict[str, str] = host.get_fact(Packages)
    missing = [name for name in names if name not in installed]
    if missing:
        wanted = " ".join(shlex.quote(name) for name in missing)
        install = f"{APT} --no-install-recommends"
        # What comes along is noted before it comes: an install that is cut off is taken off again all the same.
        yield Command(
            f"mkdir -p {RECORD.rpartition('/')[0]} && {APT} update && "
            f'new=$({install} -s install {wanted}) && echo "$new" | {_NEW} >>{RECORD} && {install} install {wanted}',
            timeout=1800,
        )


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
        purge = f"{APT} --allow-change-held-packages purge"
        yield Command(
            f'{purge} {wanted} || exit 1\norphans=$({_ORPHANS}); [ -z "$orphans" ] || {purge} $orphans || exit 1\n'
            f"{_FORGET}",
            timeout=1800,
        )


@operation
def held(*names: str) -> Iterator[Command]:
    """These packages stay as they are when others are upgraded."""
    installed: dict[str, str] = host.get_fact(Packages)
    loose = [name for name in names if name in installed and f"held:{name}" not in installed]
    if loose:
        yield Command("apt-mark hold " + " ".join(shlex.quote(name) for name in loose))
