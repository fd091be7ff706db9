"""Containers on a node, by way of its CRI runtime: images fetched ahead, and what removing a runtime needs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from pyinfra import host

from onprem_mlops.engine.facts import Probe
from onprem_mlops.engine.operation import Command, operation


@operation
def images(*references: str) -> Iterator[Command]:
    """These images are on the node, or are being fetched: the fetch goes on while the node does something else.

    A pod that starts earlier waits for the same download, it does not start another.
    """
    # `crictl images` prints repository and tag in columns of their own.
    present = host.get_fact(Probe, command="crictl images").text
    known = {":".join(line.split()[:2]) for line in present.splitlines()}
    missing = [one for one in references if one not in known]
    if missing:
        pulls = " ".join(shlex.quote(one) for one in missing)
        fetch = f"for one in {pulls}; do crictl --timeout 600s pull $one & done; wait"
        yield Command(f"systemd-run --quiet --collect --nice=5 sh -c {shlex.quote(fetch)}")


@operation
def stopped() -> Iterator[Command]:
    """No pod runs on the node. Pods that do not end by themselves are killed."""
    if host.get_fact(Probe, command='[ -n "$(crictl pods --quiet)" ]').ok:
        yield Command(
            "crictl pods --quiet | xargs -r -n 8 crictl --timeout 60s stopp >/dev/null; "
            "crictl --timeout 120s rmp --all --force >/dev/null",
            timeout=600,
        )


@operation
def unmounted(*folders: str) -> Iterator[Command]:
    """Nothing is mounted below these folders, deepest first. The folders themselves may be mount points and stay."""
    for folder in folders:
        below = f"awk -v at={shlex.quote(folder)}/ 'index($2, at) == 1 {{print $2}}' /proc/mounts | sort -r"
        if host.get_fact(Probe, command=f'[ -n "$({below})" ]').ok:
            yield Command(f"{below} | xargs -r umount -l")


@operation
def emptied(folder: str) -> Iterator[Command]:
    """A folder that is gone, or empty where it is a mount point of its own."""
    quoted = shlex.quote(folder)
    if host.get_fact(Probe, command=f'[ -n "$(ls -A {quoted})" ]').ok:
        yield Command(
            f"find {quoted} -mindepth 1 -delete && {{ mountpoint -q {quoted} || rmdir {quoted}; }}", timeout=600
        )
