"""A home with SSH keys, a few small roles, and sites made from text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from onprem_mlops.roles import Role, find_roles
from onprem_mlops.site import Site, load_site

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for each test, with one good and one careless SSH key; nothing outside is touched."""
    folder = tmp_path / "home"
    for name, mode in (("id_ed25519", 0o600), ("shared_key", 0o644)):
        key = folder / ".ssh" / name
        key.parent.mkdir(parents=True, exist_ok=True)
        key.write_text("a key")
        key.chmod(mode)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("MLOPS_STATE", str(folder / "state"))
    for name in ("MLOPS_IDENTITY", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "VISUAL", "EDITOR"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture(scope="session")
def roles() -> Mapping[str, Role]:
    """The roles in ``roles/`` beside this file."""
    return find_roles(HERE / "roles")


@pytest.fixture
def site_from(tmp_path: Path, roles: Mapping[str, Role]) -> Callable[[str], Site]:
    """Loads a site from the text of its file."""

    def load(text: str) -> Site:
        folder = tmp_path / "site"
        folder.mkdir(exist_ok=True)
        (folder / "site.yaml").write_text(text, encoding="utf-8")
        return load_site(folder, roles)

    return load


@pytest.fixture
def site(site_from: Callable[[str], Site]) -> Site:
    """A small site that is right."""
    return site_from((HERE / "good.yaml").read_text(encoding="utf-8"))
