"""Containers on a node, by way of its CRI runtime: images fetched ahead, and what removing a runtime needs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from pyinfra.context import host

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
        yield Command(f"systemd-run --quiet --collect sh -c {shlex.quote(fetch)}")


@operation
def stopped(*, of_pod_network: bool = False) -> Iterator[Command]:
    """No pod runs on the node, or none with an address of its own. The kubelet must not run: it would start them again.

    A pod whose network cannot be taken down any more is killed all the same.
    """
    pods = _OWN_ADDRESS if of_pod_network else "crictl pods --quiet"
    if host.get_fact(Probe, command=f'[ -n "$({pods})" ]').ok:
        yield Command(
            f"pods=$({pods}); echo $pods | xargs -r -n 4 -P 4 crictl --timeout 30s stopp >/dev/null 2>&1; "
            "echo $pods | xargs -r crictl --timeout 60s rmp --force >/dev/null 2>&1; "
            f'[ -z "$({pods})" ] || {{ {_KILL} }}',
            timeout=600,
        )


_OWN_ADDRESS = """\
for one in $(crictl pods --quiet); do
  crictl inspectp --output go-template --template '{{.status.linux.namespaces.options.network}}' $one |
    grep -qx -e NODE -e 2 || echo $one
done"""
"""Shell: ids of pods that are not in the node's own network."""

_KILL = """\
ctr -n k8s.io tasks ls -q | xargs -r -n 1 ctr -n k8s.io tasks kill -s KILL; sleep 1
ctr -n k8s.io tasks ls -q | xargs -r -n 1 ctr -n k8s.io tasks rm -f
ctr -n k8s.io containers ls -q | xargs -r ctr -n k8s.io containers rm
"""
"""Shell: what is left when a pod's network plugin is gone, so that its sandbox cannot be stopped as it should."""


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
