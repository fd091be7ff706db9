"""A wheelhouse from a lock file with hashes."""

from __future__ import annotations

from onprem_mlops.artifacts.catalogue import PypiSource
from onprem_mlops.artifacts.sources.toolchain import pip
from onprem_mlops.artifacts.sources.workshop import Made, Workshop


def download(source: PypiSource, shop: Workshop) -> Made:
    """Download every wheel of the lock; pip refuses what has no or another hash."""
    lock = shop.catalogue.folder / source.lock
    out = shop.folder("wheels")
    options = ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--dest", str(out)]
    shop.run([*pip(), "download", *options, "-r", str(lock)])
    return Made({path.name: path for path in out.iterdir()}, made_with="pip download")
