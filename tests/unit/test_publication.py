"""A site's folder in Git: what goes in and what never does, with a real repository on the disk."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from onprem_mlops.errors import MlopsError, RequestError
from onprem_mlops.publication import Remote
from onprem_mlops.site import Site
from onprem_mlops.site.role import Forge


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A site's folder."""
    folder = tmp_path / "site"
    (folder / "roles" / "notice").mkdir(parents=True)
    (folder / "roles" / "notice" / "settings.py").write_text("class Settings: ...\n")
    (folder / "roles" / "__pycache__").mkdir()
    (folder / "roles" / "__pycache__" / "settings.pyc").write_text("compiled")
    (folder / "site.yaml").write_text("version: 1\n")
    (folder / "secrets.yaml.age").write_text("age-encryption.org/v1\n")
    return folder


@pytest.fixture
def remote(folder: Path, tmp_path: Path) -> Remote:
    """Git that takes pushes, empty."""
    subprocess.run(["git", "init", "-q", "--bare", str(tmp_path / "there.git")], check=True)
    forge = Forge(f"{tmp_path}/", "s1", "/etc/header", "program", "there")
    who = {f"GIT_{role}_{what}": "a@example.com" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1", **who}
    return Remote(Site.model_construct(name="test", folder=folder, lab=None), forge, environment)


def there(tmp_path: Path, *words: str) -> list[str]:
    done = subprocess.run(
        ["git", "-C", str(tmp_path / "there.git"), *words], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_the_folder_goes_in_with_what_is_encrypted(remote: Remote, tmp_path: Path) -> None:
    first = remote.push_folder()
    assert first.changed
    assert there(tmp_path, "rev-parse", "main") == [first.commit]
    assert there(tmp_path, "ls-tree", "-r", "--name-only", "main") == [
        "roles/notice/settings.py",
        "secrets.yaml.age",
        "site.yaml",
    ]


def test_what_is_there_already_is_not_pushed_again(remote: Remote) -> None:
    first = remote.push_folder()
    again = remote.push_folder()
    assert (again.changed, again.commit) == (False, first.commit)


def test_a_change_comes_on_top_and_what_is_gone_goes(remote: Remote, folder: Path, tmp_path: Path) -> None:
    first = remote.push_folder()
    (folder / "site.yaml").write_text("version: 1\nname: test\n")
    (folder / "roles" / "notice" / "settings.py").unlink()
    second = remote.push_folder()
    assert there(tmp_path, "rev-list", "main") == [second.commit, first.commit]
    assert there(tmp_path, "ls-tree", "-r", "--name-only", "main") == ["secrets.yaml.age", "site.yaml"]


@pytest.mark.parametrize(
    "text", ["AGE-SECRET-KEY-1QQPQYQ", "-----BEGIN OPENSSH PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----"]
)
def test_a_key_in_plain_text_is_refused(remote: Remote, folder: Path, tmp_path: Path, text: str) -> None:
    (folder / "notes.txt").write_text(f"remember: {text}\n")
    with pytest.raises(RequestError, match=r"notes\.txt holds a private key"):
        remote.push_folder()
    assert there(tmp_path, "for-each-ref") == []


def test_what_git_says_is_told(remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "there.git" / "HEAD").unlink()
    with pytest.raises(MlopsError, match="ls-remote"):
        remote.push_folder()
