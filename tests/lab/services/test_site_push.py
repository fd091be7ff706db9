"""The platform's own description in the Git that it serves itself: `./mlops site push`."""

from __future__ import annotations

import io
import json
import os
import secrets
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onprem_mlops.paths import REPOSITORY
from onprem_mlops.site import Secrets, load_site
from onprem_mlops.site.material import authority_file
from onprem_mlops.site.secrets import material_folder
from tests.lab.clients import Client
from tests.lab.sites import TestSite

pytestmark = pytest.mark.lab

ENCRYPTED_OR_PUBLIC = ("secrets.yaml.age", "recipients.txt", "ca.pem")
"""What a lab keeps in its state folder and a site in its own."""


@pytest.fixture
def note(site: TestSite) -> Iterator[Path]:
    """A file of the site's folder that Git has not seen yet."""
    path = site.folder / "note.md"
    path.write_text(secrets.token_hex(8))
    yield path
    path.unlink()


def pushed(site: TestSite, folder: Path) -> dict[str, Any]:
    """What was pushed: the program and the site."""
    result = folder / "pushed.json"
    site.run("site", "push", "--json", str(result)).must()
    return {one["what"]: one for one in json.loads(result.read_text())["pushed"]}


def in_gitea(gitea: Client, repository: str) -> dict[str, bytes]:
    """The files of a repository's main branch, as Gitea gives them to people."""
    answer = gitea.ask("GET", f"/api/v1/repos/{repository}/archive/main.tar.gz")
    assert answer.status == 200, f"{repository}: HTTP {answer.status} {answer.text[:200]}"
    with tarfile.open(fileobj=io.BytesIO(answer.body)) as archive:
        files = [(one, archive.extractfile(one)) for one in archive if one.isfile()]
        return {one.name.partition("/")[2]: file.read() for one, file in files if file}


def test_the_description_is_pushed_once_and_without_secrets(
    site: TestSite, gitea: Client, note: Path, tmp_path: Path
) -> None:
    loaded = load_site(site.folder)
    first = pushed(site, tmp_path)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert first["program"]["commit"] == head.stdout.strip()
    assert first["site"]["changed"]
    expected = {str(path.relative_to(site.folder)): path for path in site.folder.rglob("*") if path.is_file()}
    expected |= {name: material_folder(loaded) / name for name in ENCRYPTED_OR_PUBLIC}
    there = in_gitea(gitea, f"platform/site-{site.name}")
    assert there == {name: path.read_bytes() for name, path in expected.items()}
    known = [value.reveal().encode() for named in Secrets.of(loaded).show().values() for value in named.values()]
    assert len(known) > 20
    in_clear = {name for name, content in there.items() for value in known if value in content}
    assert not in_clear
    again = pushed(site, tmp_path)
    assert [one["changed"] for one in again.values()] == [False, False]
    assert again["site"]["commit"] == first["site"]["commit"]


def test_nobody_else_pushes_to_it_without_a_review(site: TestSite, gitea: Client, note: Path, tmp_path: Path) -> None:
    before = pushed(site, tmp_path)["site"]["commit"]
    name, password = f"t-{secrets.token_hex(4)}", secrets.token_urlsafe(24)
    person = {"username": name, "email": f"{name}@example.com", "password": password, "must_change_password": False}
    gitea.must("POST", "/api/v1/admin/users", person)
    try:
        wanted = {"name": "push", "scopes": ["write:repository"]}
        itself = Client.with_password(site, gitea.url, name, password)
        token = itself.must("POST", f"/api/v1/users/{name}/tokens", wanted)["sha1"]
        # Somebody who may write to it: only the protection is between them and the branch.
        at = f"/api/v1/repos/platform/site-{site.name}"
        gitea.must("PUT", f"{at}/collaborators/{name}", {"permission": "write"})
        git = _git_of(site, token, tmp_path / "clone")
        git("clone", "-q", f"{gitea.url}/platform/site-{site.name}.git", str(tmp_path / "clone"))
        git("commit", "-q", "--allow-empty", "-m", "by hand")
        # The control: another branch takes it.
        assert git("push", "-q", "origin", "HEAD:refs/heads/proposal").returncode == 0
        refused = git("push", "-q", "origin", "HEAD:refs/heads/main")
        assert refused.returncode != 0 and "protected branch" in refused.stderr, refused.stderr
        assert gitea.must("GET", f"{at}/branches/main")["commit"]["id"] == before
        gitea.must("DELETE", f"{at}/branches/proposal")
    finally:
        gitea.must("DELETE", f"/api/v1/admin/users/{name}?purge=true")


def _git_of(site: TestSite, token: str, folder: Path) -> Any:
    """Git of a person with a token, on this machine, in a folder of its own."""
    folder.mkdir()
    loaded = load_site(site.folder)
    host = f"git.{loaded.domain}"
    settings = {
        "http.sslCAInfo": str(authority_file(loaded)),
        "http.curloptResolve": f"{host}:443:{','.join(map(str, loaded.names[host]))}",
        "http.extraHeader": f"Authorization: token {token}",
        "user.name": "somebody",
        "user.email": "somebody@example.com",
    }
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_TERMINAL_PROMPT": "0"}
    environment["GIT_CONFIG_COUNT"] = str(len(settings))
    for number, (key, value) in enumerate(settings.items()):
        environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    return git
