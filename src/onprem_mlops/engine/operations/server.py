"""The operating system of a node: its name, users, kernel settings and modules."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping

from pyinfra.context import host

from onprem_mlops.engine.facts import Probe
from onprem_mlops.engine.operation import Command, operation


@operation
def hostname(name: str) -> Iterator[Command]:
    """The node's own name, now and after a boot."""
    now = host.get_fact(Probe, command="hostname; cat /etc/hostname")
    if now.text.split() != [name, name]:
        yield Command(f"hostnamectl set-hostname {shlex.quote(name)}")


@operation
def user(
    name: str,
    *,
    system: bool = False,
    shell: str = "/usr/sbin/nologin",
    home: str | None = None,
    groups: tuple[str, ...] = (),
) -> Iterator[Command]:
    """A user with a group of the same name. Its home is made unless it is a system user."""
    now = host.get_fact(Probe, command=f"getent passwd {shlex.quote(name)} && id -nG {shlex.quote(name)}")
    where = f"--home-dir {shlex.quote(home)} " if home else ""
    if not now.ok:
        kind = "--system --no-create-home" if system else "--create-home"
        more = f"--groups {shlex.quote(','.join(groups))} " if groups else ""
        yield Command(f"useradd {kind} --user-group --shell {shlex.quote(shell)} {where}{more}{shlex.quote(name)}")
        return
    entry, _, member_of = now.text.partition("\n")
    if entry.split(":")[-1] != shell:
        yield Command(f"usermod --shell {shlex.quote(shell)} {shlex.quote(name)}")
    missing = [one for one in groups if one not in member_of.split()]
    if missing:
        yield Command(f"usermod --append --groups {shlex.quote(','.join(missing))} {shlex.quote(name)}")


@operation
def no_user(name: str) -> Iterator[Command]:
    """No such user; its home stays (it is data)."""
    if host.get_fact(Probe, command=f"getent passwd {shlex.quote(name)}").ok:
        yield Command(f"userdel {shlex.quote(name)}")


SYSCTL_RECORD = "/var/lib/onprem-mlops/sysctl"
"""Kernel parameters that were changed, as they were before: `key = value` a line."""


@operation
def sysctl(values: Mapping[str, str]) -> Iterator[Command]:
    """Kernel settings as they are now. What persists them is a file in /etc/sysctl.d, written beside this."""
    now = host.get_fact(Probe, command="sysctl " + " ".join(shlex.quote(key) for key in values))
    current = dict(line.split(" = ", 1) for line in now.text.splitlines() if " = " in line)
    wrong = {key: value for key, value in values.items() if current.get(key, "").split() != value.split()}
    if not wrong:
        return
    # All are noted before the first is set: the kernel changes some of them itself when it begins to forward.
    keys = " ".join(shlex.quote(key) for key in wrong)
    yield Command(
        f"mkdir -p /var/lib/onprem-mlops; for key in {keys}; do "
        f'grep -qsF "$key = " {SYSCTL_RECORD} || sysctl "$key" || exit 1; done >>{SYSCTL_RECORD}'
    )
    for key, value in values.items():
        yield Command(f"sysctl -q -w {shlex.quote(f'{key}={value}')}")


@operation
def sysctl_restored() -> Iterator[Command]:
    """Kernel settings as they were before `sysctl` changed them."""
    recorded = host.get_fact(Probe, command=f"cat {SYSCTL_RECORD}")
    if not recorded.ok:
        return
    # One by one: a parameter that the kernel no longer has must not keep the others from being set back.
    yield Command(
        f'while IFS= read -r line; do sysctl -q -w "${{line%% = *}}=${{line#* = }}" || true; done <{SYSCTL_RECORD}; '
        f"rm -f {SYSCTL_RECORD}"
    )


@operation
def modules(*names: str) -> Iterator[Command]:
    """Kernel modules that are loaded or built in. What loads them at boot is a file in /etc/modules-load.d."""
    for name in names:
        if not host.get_fact(Probe, command=_module_known(name)).ok:
            yield Command(f"modprobe {shlex.quote(name)}")


def _module_known(name: str) -> str:
    """Reading command: whether the kernel has the module. One that cannot load any has what it needs built in."""
    plain = name.replace("-", "_")
    built_in = f"grep -q '/{plain}\\.ko' /lib/modules/$(uname -r)/modules.builtin"
    return f"[ ! -e /proc/modules ] || [ -d /sys/module/{plain} ] || grep -qw {plain} /proc/filesystems || {built_in}"
