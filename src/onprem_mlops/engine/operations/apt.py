"""Debian packages."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

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

HELD = "/var/lib/onprem-mlops/held"
"""Names of the packages that roles held on a node; one a line. Others are held by a person, and stay so."""

_NEW = "sed -n 's/^Inst \\([^ ]*\\) (.*/\\1/p'"
"""Filter: names that a simulated `apt-get install` would newly install. An upgrade has its old version in brackets."""

_EXACTLY = f"{APT} --no-install-recommends --allow-change-held-packages --allow-downgrades"
"""apt-get that takes just these versions, newer or older than what is there, held or not."""

_STATES = "dpkg-query -W -f '${db:Status-Abbrev}|${Package}\\n'"

_ORPHANS = (
    f"{{ {APT} -s -o APT::AutoRemove::RecommendsImportant=false -o APT::AutoRemove::SuggestsImportant=false autoremove "
    f"| sed -n 's/^Remv \\([^ ]*\\).*/\\1/p'; {_STATES} | sed -n 's/^.[cH].|//p'; }} | grep -xFf {RECORD}"
)
"""Names that came along with our packages and that nothing needs any more, and those that an earlier removal, cut off,
took off in part. Other orphans are not ours."""


def _forget(record: str) -> str:
    """Shell: keep only names in a record that are installed: what a person installs later is theirs."""
    return (
        f"if [ -e {record} ]; then {_STATES} | sed -n 's/^.i.|//p' | grep -xFf {record} >{record}.new; "
        f"if [ -s {record}.new ]; then mv -fT {record}.new {record}; else rm -f {record} {record}.new; fi; fi"
    )


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
        yield _install(missing, f"{APT} --no-install-recommends")


def _install(names: list[str], install: str) -> Command:
    wanted = " ".join(shlex.quote(name) for name in names)
    # What comes along is noted before it comes: an install that is cut off is taken off again all the same.
    return Command(
        f"mkdir -p {RECORD.rpartition('/')[0]} && {APT} update && "
        f'new=$({install} -s install {wanted}) && echo "$new" | {_NEW} >>{RECORD} && {install} install {wanted}',
        timeout=1800,
    )


@operation
def upgraded(offered: Mapping[str, str]) -> Iterator[Command]:
    """Packages that `held` held are upgraded if they are older than what is offered: nobody else does it.

    Those that are not installed, or that a person held, are left alone.

    Args:
        offered: package → version that the node's sources offer.
    """
    installed: dict[str, str] = host.get_fact(Packages)
    # Equal on a converged node; only what differs costs a look.
    older = [
        name
        for name, version in offered.items()
        if installed.get(name, version) != version
        and host.get_fact(Probe, command=_may_be_upgraded(name, installed[name], version)).ok
    ]
    if older:
        yield from _repair()
        yield _install(older, f"{APT} --no-install-recommends --allow-change-held-packages")


def _may_be_upgraded(name: str, installed: str, offered: str) -> str:
    """Reading command: whether we hold the package, and it is older."""
    older = f"dpkg --compare-versions {shlex.quote(installed)} lt {shlex.quote(offered)}"
    return f"grep -qx {shlex.quote(name)} {HELD} && {older}"


@operation
def purged(*names: str) -> Iterator[Command]:
    """These packages, and what was installed only for them, are gone with their configuration.

    Only those that `packages` installed: what the node had before is not ours to take away. And only if nothing that
    somebody asked for needs them: else they go when that goes.
    """
    recorded = host.get_fact(Probe, command=f"cat {RECORD}").text.split()
    ours = [name for name in names if name in recorded]
    if not ours:
        return
    yield from _repair()
    installed: dict[str, str] = host.get_fact(Packages)
    present = [name for name in ours if name in installed]
    purge = f"{APT} --allow-change-held-packages purge"
    # The record is what says that a removal is not done: it is cleared last, and one that was cut off goes on from it.
    yield Command(
        (_purge(present, purge) if present else "")
        + f'orphans=$({_ORPHANS}); [ -z "$orphans" ] || {purge} $orphans || exit 1\n'
        + f"{_forget(RECORD)}; {_forget(HELD)}",
        timeout=1800,
    )


def _purge(names: list[str], purge: str) -> str:
    """Shell: purge these packages, but for those whose removal would take along what somebody asked for."""
    quoted = " ".join(shlex.quote(name) for name in names)
    others = shlex.quote("\n".join(names))
    # The last line of `asked` is no package: without one, grep would find everything.
    return (
        f"asked=$(apt-mark showmanual | grep -vxF {others}; echo /)\n"
        f"set --; for name in {quoted}; do\n"
        f"if {purge} -s $name | sed -n 's/^\\(Purg\\|Remv\\) \\([^ ]*\\).*/\\2/p' | grep -qxF \"$asked\"; "
        'then apt-mark auto $name; else set -- "$@" $name; fi; done\n'
        f'[ $# = 0 ] || {purge} "$@" || exit 1\n'
    )


@operation
def held(*names: str) -> Iterator[Command]:
    """These packages stay as they are when others are upgraded."""
    installed: dict[str, str] = host.get_fact(Packages)
    loose = [name for name in names if name in installed and f"held:{name}" not in installed]
    if loose:
        yield Command(_hold(loose))


def _hold(names: list[str]) -> str:
    wanted = " ".join(shlex.quote(name) for name in names)
    return f"mkdir -p {HELD.rpartition('/')[0]} && printf '%s\\n' {wanted} >>{HELD} && apt-mark hold {wanted}"


@operation
def unheld() -> Iterator[Command]:
    """What `held` held may be upgraded again; what a person held stays held."""
    recorded = host.get_fact(Probe, command=f"cat {HELD}")
    if not recorded.ok:
        return
    known: dict[str, str] = host.get_fact(Packages)
    names = sorted({name for name in recorded.text.split() if f"held:{name}" in known})
    release = f"apt-mark unhold {' '.join(shlex.quote(name) for name in names)} && " if names else ""
    yield Command(f"{release}rm -f {HELD}")


@operation
def released(*names: str) -> Iterator[Command]:
    """Of what `held` or `pinned` held, these packages may be upgraded again; they stay installed."""
    recorded = host.get_fact(Probe, command=f"cat {HELD}").text.split()
    known: dict[str, str] = host.get_fact(Packages)
    ours = [name for name in names if name in recorded and f"held:{name}" in known]
    if ours:
        quoted = " ".join(shlex.quote(name) for name in ours)
        lines = shlex.quote("\n".join(ours))
        yield Command(
            f"apt-mark unhold {quoted} && {{ grep -vxF {lines} {HELD} >{HELD}.new; mv -fT {HELD}.new {HELD}; }}"
        )


@operation
def pinned(versions: Mapping[str, str]) -> Iterator[Command]:
    """Packages are installed in exactly these versions, newer or older than what is there, and stay so.

    Args:
        versions: package → version, which the node's sources must offer.
    """
    installed: dict[str, str] = host.get_fact(Packages)
    others = [f"{name}={version}" for name, version in versions.items() if installed.get(name) != version]
    # What a person held stays theirs: it is not noted as ours.
    loose = [name for name in versions if f"held:{name}" not in installed]
    if others:
        yield from _repair()
        yield _install(others, _EXACTLY)
    if loose:
        yield Command(_hold(loose))


@operation
def fetched(*names: str) -> Iterator[Command]:
    """These packages, and what they need, lie on the node, to be installed later without the mirror.

    Args:
        names: packages, or package=version, which the node's sources must offer.
    """
    wanted = " ".join(shlex.quote(name) for name in names)
    yield from _repair()
    yield Command(f"{APT} update && {_EXACTLY} --download-only install {wanted}", timeout=1800)
