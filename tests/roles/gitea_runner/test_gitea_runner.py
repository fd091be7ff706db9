"""Steps of the role gitea_runner on nodes that are data, and its actions' repositories, which Git itself makes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from onprem_mlops.paths import REPOSITORY
from roles.gitea_runner.repository import Repository, repositories
from tests.roles.harness import Case, FakeNode, cases, check

ACTIONS = REPOSITORY / "roles" / "gitea_runner" / "actions"


@pytest.mark.parametrize("case", cases("gitea_runner"))
def test_step(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)


def published(tag: str = "") -> dict[str, Any]:
    """What Gitea's API answers where all actions are as they should be; with `tag` theirs are at that commit."""
    answers: dict[str, Any] = {"/orgs/actions": {"visibility": "public"}}
    for one in map(Repository.read, repositories(ACTIONS)):
        answers[f"/repos/actions/{one.name}"] = {"private": False}
        answers[f"/repos/actions/{one.name}/tags/v4"] = {"commit": {"sha": tag or one.commit}}
    return answers


def done_for_actions(objects: dict[str, Any], folder: Path) -> dict[str, str]:
    """The purposes of what the step `actions` would do, each with its commands."""
    roles = ["node", "firewall", "mirror", "postgresql", "object_store", "gitea", "gitea_runner"]
    case = Case(Path("gitea_runner/case.yaml"), {"step": "actions", "node": "s1", "site": {"roles": roles}})
    node = FakeNode(objects=objects)
    assert case.run(node, folder) == ""
    return {change.purpose: "\n".join(change.commands) for change in node.changes}


def test_actions_are_published(tmp_path: Path) -> None:
    done = done_for_actions({}, tmp_path)
    assert "--request POST" in done["organisation actions"]
    assert "/orgs/actions/repos" in done["repository of action actions/checkout"]
    # The token is read where it is used; it is no argument of curl, nor of git.
    push = done["action actions/checkout@v4"]
    assert 'GIT_CONFIG_VALUE_0="$(cat /etc/gitea/token)"' in push
    assert len(done) == 1 + 2 * len(repositories(ACTIONS))


def test_actions_that_are_there_stay_as_they_are(tmp_path: Path) -> None:
    assert done_for_actions(published(), tmp_path) == {}


def test_an_action_that_changed_is_pushed_again(tmp_path: Path) -> None:
    names = {f"action actions/{folder.name}@v4" for folder in repositories(ACTIONS)}
    assert set(done_for_actions(published("0" * 40), tmp_path)) == names


def test_private_actions_become_public_again(tmp_path: Path) -> None:
    changed = {"/repos/actions/checkout": {"private": True}}
    done = done_for_actions(published() | changed, tmp_path)
    assert set(done) == {"repository of action actions/checkout"}
    assert "--request PATCH" in done["repository of action actions/checkout"]


def test_the_organisation_of_actions_is_the_site_file_s(tmp_path: Path) -> None:
    assert done_for_actions(published() | {"/orgs/actions": {"visibility": "limited"}}, tmp_path) == {}


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
