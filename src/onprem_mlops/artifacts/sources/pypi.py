"""A wheelhouse from a lock file with hashes."""

from __future__ import annotations

from collections.abc import Iterator

from onprem_mlops.artifacts.catalogue import PypiSource
from onprem_mlops.artifacts.manifest import LOCK
from onprem_mlops.artifacts.sources.toolchain import pip
from onprem_mlops.artifacts.sources.workshop import Made, Workshop

OLDEST_GLIBC = 5
"""Minor version of glibc 2 that the oldest kind of wheel (manylinux1) asks for."""


def download(source: PypiSource, shop: Workshop) -> Made:
    """Download every wheel of the lock for the nodes' Python; pip refuses what has no or another hash."""
    lock = shop.catalogue.folder / source.lock
    out = shop.folder("wheels")
    options = ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--dest", str(out)]
    options += ["--implementation", "cp", "--python-version", source.python]
    options += [part for name in _platforms(source) for part in ("--platform", name)]
    shop.run([*pip(), "download", *options, "-r", str(lock)])
    wheels = {path.name: path for path in sorted(out.iterdir())}
    return Made({LOCK: lock, **wheels}, made_with="pip download")


def _platforms(source: PypiSource) -> Iterator[str]:
    """The platforms whose wheels a node can use, best first; pip works them out for its own machine only."""
    for minor in range(source.glibc, OLDEST_GLIBC - 1, -1):
        yield f"manylinux_2_{minor}_x86_64"
    yield from ("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64")
