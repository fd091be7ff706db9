"""Steps of the role gitea_runner on nodes that are data, and its actions' repositories, which Git itself makes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from onprem_mlops.paths import REPOSITORY
from roles.gitea_runner.repository import Repository, repositories
from tests.roles.harness import Case, cases, check

ACTIONS = REPOSITORY / "roles" / "gitea_runner" / "actions"


@pytest.mark.parametrize("case", cases("gitea_runner"))
def test_step(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


@pytest.mark.parametrize("folder", repositories(ACTIONS), ids=lambda folder: folder.name)
def test_git_makes_the_commit_that_was_foretold(folder: Path, tmp_path: Path) -> None:
    one = Repository.read(folder)
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q", "--bare"], check=True)
    subprocess.run([*git, "fast-import", "--quiet"], input=one.import_stream(), check=True)
    said = subprocess.run([*git, "rev-parse", "main", one.tag], check=True, capture_output=True, text=True).stdout
    assert said.split() == [one.commit, one.commit]
    names = subprocess.run([*git, "ls-tree", "--name-only", "main"], check=True, capture_output=True, text=True).stdout
    assert "action.yaml" in names.split()


def test_shared_scripts_go_where_they_are_imported() -> None:
    with_it = {
        one.name for one in map(Repository.read, repositories(ACTIONS)) if "artifact_service.py" in dict(one.files)
    }
    assert with_it == {"upload-artifact", "download-artifact"}
