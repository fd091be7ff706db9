"""OCI images, made by crane in a CNCF distribution registry that lives as long as the build.

The registry's storage folder is the result: the mirror serves exactly these files.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onprem_mlops.artifacts import layers
from onprem_mlops.artifacts.catalogue import RecipeSource, Reference, UpstreamImageSource
from onprem_mlops.artifacts.manifest import ArtifactManifest, StoredImage
from onprem_mlops.artifacts.sources.workshop import Made, Workshop
from onprem_mlops.errors import MlopsError

_START_SECONDS = 20
_CONFIGURATION = """\
version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {storage}}}}}
http: {{addr: "{address}"}}
"""


def make(source: RecipeSource, shop: Workshop) -> Made:
    """Make the image that the recipe describes."""
    reference = shop.artifact.reference()
    storage = shop.folder("registry")
    layer = shop.work / "layer.tar"
    layers.write_layer(layer, lambda out: _fill(source, shop, out))
    with _registry(shop, storage) as address:
        target = f"{address}/{reference}"
        _crane(shop, "append", *_base(source, shop, storage, address), "-f", str(layer), "-t", target)
        _crane(shop, "mutate", *_configuration(source), "-t", target, target)
    return _taken(shop, storage, reference)


def copy(source: UpstreamImageSource, shop: Workshop) -> Made:
    """Copy the image from its own registry; crane checks the digest."""
    reference = shop.artifact.reference()
    storage = shop.folder("registry")
    with _registry(shop, storage) as address:
        _crane(shop, "copy", f"{reference.repository}@sha256:{source.digest}", f"{address}/{reference}")
    return _taken(shop, storage, reference)


def _fill(source: RecipeSource, shop: Workshop, out: layers.Layer) -> None:
    for folder in sorted(source.folders):
        out.folder(folder, 0o1777 if folder == "/tmp" else 0o755)  # noqa: S108 the image's own
    for folder, owner in sorted(source.owned.items()):
        out.folder(folder, 0o755, owner)
    for folder, tree in sorted(source.trees.items()):
        out.unpacked(folder, shop.input(tree))
    for path, name in sorted(source.files.items()):
        origin = shop.input(name)
        out.file(path, origin, 0o755 if os.access(origin, os.X_OK) else 0o644)
    for path, inline in sorted(source.text.items()):
        out.text(path, inline.text, inline.mode)
    for path, target in sorted(source.links.items()):
        out.link(path, target)


def _base(source: RecipeSource, shop: Workshop, storage: Path, address: str) -> list[str]:
    if source.base is None:
        return ["--oci-empty-base"]
    base = shop.inputs[source.base]
    if not base.images:
        return ["--oci-empty-base", "-f", str(shop.input(f"{source.base}/rootfs.tar"))]
    _lay_out(base, shop, storage)
    return ["-b", f"{address}/{base.images[0].reference}"]


def _lay_out(base: ArtifactManifest, shop: Workshop, storage: Path) -> None:
    for file in base.files:
        target = storage / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(shop.blob(file.sha256), target)


def _configuration(source: RecipeSource) -> list[str]:
    options = ["--set-platform", "linux/amd64"]
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    for key, value in sorted({"PATH": path, **source.env}.items()):
        options += ["--env", f"{key}={value}"]
    options += [f"--entrypoint={part}" for part in source.entrypoint]
    options += [f"--cmd={part}" for part in source.cmd]
    return [*options, *(["--user", source.user] if source.user else [])]


def _crane(shop: Workshop, *arguments: str) -> None:
    # An empty configuration: the person's own registry passwords are none of our business.
    shop.run([str(shop.input("crane/crane")), *arguments], env={"DOCKER_CONFIG": str(shop.folder("docker"))})


@contextmanager
def _registry(shop: Workshop, storage: Path) -> Iterator[str]:
    """A registry over `storage` on a free port of this machine; gives its address."""
    address = f"127.0.0.1:{_free_port()}"
    configuration = shop.work / "registry.yaml"
    configuration.write_text(_CONFIGURATION.format(storage=storage, address=address))
    env = {"OTEL_TRACES_EXPORTER": "none"}
    with shop.log.open("ab") as output:
        process = shop.processes.start(
            [str(shop.input("registry/registry")), "serve", str(configuration)], output.fileno(), env=env
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise MlopsError(f"{shop.artifact.name}: the local registry does not start", f"see {shop.log}")
            time.sleep(0.05)
        yield address
    finally:
        shop.processes.end(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(address: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://{address}/v2/", timeout=1):
            return True
    except (OSError, urllib.error.URLError):
        return False


def _taken(shop: Workshop, storage: Path, reference: Reference) -> Made:
    """The files of the storage folder that the tag needs; intermediate images and other repositories stay behind."""
    root = storage / "docker/registry/v2"
    repository = root / "repositories" / reference.repository
    digest = (repository / "_manifests/tags" / reference.tag / "current/link").read_text().strip()
    needed = _reachable(root, digest.removeprefix("sha256:"))
    files: dict[str, Path] = {}
    for path in sorted([*(root / "blobs").rglob("data"), *repository.rglob("link")]):
        digests = {part for part in path.parts if len(part) == 64}
        if digests <= needed:
            files[str(path.relative_to(storage))] = path
    image = StoredImage(reference=str(reference), digest=digest)
    return Made(files, made_with="crane", prefix="registry", images=(image,))


def _reachable(root: Path, digest: str) -> set[str]:
    """The digests of a manifest or index and everything below it."""
    found = {digest}
    content = json.loads((root / "blobs/sha256" / digest[:2] / digest / "data").read_text())
    for child in content.get("manifests", []):
        found |= _reachable(root, str(child["digest"]).removeprefix("sha256:"))
    parts = [*content.get("layers", []), *([content["config"]] if "config" in content else [])]
    return found | {str(part["digest"]).removeprefix("sha256:") for part in parts}
