"""Which source an artifact comes from, and why; and how each kind is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from onprem_mlops.artifacts.catalogue import (
    Artifact,
    CSource,
    DebSource,
    FrontendSource,
    GoSource,
    ModuleSource,
    PypiSource,
    RecipeSource,
    RootfsSource,
    Source,
    UpstreamImageSource,
    UrlSource,
)
from onprem_mlops.artifacts.sources import debian, frontend, go, image, pypi, url
from onprem_mlops.artifacts.sources.workshop import Made, Workshop
from onprem_mlops.errors import RequestError

# These compile: more than two at a time only fight for the processors.
HEAVY = frozenset({"go", "c", "frontend"})


def probe(artifacts: Iterable[Artifact]) -> dict[str, str]:
    """Address → why it is not reachable (empty: it is). Each is asked once, all at the same time."""
    addresses = sorted({_address(a, s) for a in artifacts if len(a.sources) > 1 for s in a.sources} - {""})
    if not addresses:
        return {}
    with ThreadPoolExecutor(max_workers=len(addresses)) as pool:
        return dict(zip(addresses, pool.map(url.reachable, addresses), strict=True))


def choose(artifact: Artifact, asked: str, answers: Mapping[str, str]) -> tuple[Source, str]:
    """The source to use and the reason. `asked`: a kind of source, or `auto`: the first that is reachable."""
    if asked != "auto":
        for source in artifact.sources:
            if source.kind == asked:
                return source, "asked for"
        if len(artifact.sources) > 1:
            kinds = " or ".join(source.kind for source in artifact.sources)
            raise RequestError(f"{artifact.name}: no source {asked!r}", f"it has {kinds}")
    if len(artifact.sources) == 1:
        return artifact.sources[0], "the only source"
    passed: list[str] = []
    for source in artifact.sources[:-1]:
        address = _address(artifact, source)
        if not (problem := answers.get(address, "")):
            return source, "reachable"
        passed.append(f"{_host(address)}: {problem}")
    return artifact.sources[-1], "; ".join(passed)


def _address(artifact: Artifact, source: Source) -> str:
    if isinstance(source, UrlSource):
        return url.address(source.files[0], artifact.version)
    if isinstance(source, UpstreamImageSource) and artifact.image:
        return f"https://{artifact.image.split('/', 1)[0]}/v2/"
    return ""


def _host(address: str) -> str:
    return address.split("/")[2] if "//" in address else address


def produce(source: Source, shop: Workshop) -> Made:
    """Make the artifact's files from `source`."""
    match source:
        case UrlSource():
            return url.fetch(source, shop)
        case GoSource():
            return go.build(source, shop)
        case ModuleSource() | FrontendSource() | CSource():
            return _from_module(source, shop)
        case DebSource():
            return debian.repository(source, shop)
        case RootfsSource():
            return debian.rootfs(source, shop)
        case PypiSource():
            return pypi.download(source, shop)
        case UpstreamImageSource():
            return image.copy(source, shop)
        case RecipeSource():
            return image.make(source, shop)


def _from_module(source: ModuleSource | FrontendSource | CSource, shop: Workshop) -> Made:
    """What is made of a Go module's files other than its Go."""
    match source:
        case ModuleSource():
            return go.take(source, shop)
        case FrontendSource():
            return frontend.build(source, shop)
        case CSource():
            return go.compile_c(source, shop)
