"""Python environments on a node, made offline from wheels of the artifact store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pyinfra.context import host

from onprem_mlops import wheelhouse
from onprem_mlops.engine.facts import Probe
from onprem_mlops.engine.operation import Command, operation
from onprem_mlops.events import Diff
from onprem_mlops.steps import PublishedFile


@operation
def environment(
    path: str, files: Sequence[PublishedFile], installer: Sequence[PublishedFile], *, authority: str, warm: str = ""
) -> Iterator[Command]:
    """An environment with exactly the wheels of a lock, fetched from the mirror and checked before they are installed.

    Args:
        path: of `wheelhouse.environment_path`; others beside it stay until `alone` takes them away.
        files: the wheels and their lock (`ctx.files(...)`).
        installer: the wheelhouse of uv.
        authority: path on the node of the site authority's certificate, which the mirror must be signed by.
        warm: Python statements, such as the imports of a service's start, whose bytecode is to be there.
    """
    if host.get_fact(Probe, command=wheelhouse.is_whole(path)).ok:
        return
    wheels = "".join(f"{one.name}\n" for one in files)
    yield Command(
        wheelhouse.build(path, authority=authority, warm=warm),
        stdin=wheelhouse.listing(files, installer),
        diff=Diff(f"{path} (wheels)", None, wheels),
        timeout=900,
    )


@operation
def alone(path: str) -> Iterator[Command]:
    """No other environment lies beside this one. To be called once nothing runs from them any more."""
    if not host.get_fact(Probe, command=f'[ -z "$({wheelhouse.others(path)})" ]').ok:
        yield Command(f"{wheelhouse.others(path)} -exec rm -rf {{}} +")
