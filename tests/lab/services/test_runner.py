"""Slots that take jobs whatever befalls Gitea: one that answers late, and one that has forgotten them."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.clients import Client
from tests.lab.services.at_work import comes_back
from tests.lab.sites import TestSite

pytestmark = pytest.mark.lab

WORKFLOW = "on: [push]\njobs:\n  works:\n    runs-on: s1\n    steps:\n      - run: echo done\n"
SLOTS = "/usr/bin/systemctl {} onprem-gitea-runner@1 onprem-gitea-runner@2"


@pytest.fixture
def repository(gitea: Client) -> Iterator[str]:
    """Where the API has a repository of one workflow, which a push runs; gone at the end."""
    new = {"name": uuid.uuid4().hex[:8], "auto_init": True, "private": True, "default_branch": "main"}
    at = f"/api/v1/repos/{gitea.must('POST', '/api/v1/user/repos', new)['full_name']}"
    yield at
    gitea.must("DELETE", at)


def push(gitea: Client, at: str) -> None:
    """A commit, and with it a run."""
    content = base64.b64encode(WORKFLOW.encode()).decode()
    change = {"content": content, "message": "a job", "branch": "main"}
    gitea.must("POST", f"{at}/contents/.gitea/workflows/works.yaml", change)
    comes_back(lambda: job(gitea, at))


def job(gitea: Client, at: str) -> dict[str, Any]:
    """The only job of the repository; AssertionError if there is none yet."""
    found = gitea.must("GET", f"{at}/actions/jobs")["jobs"]
    assert found, "no run yet"
    return dict(found[0])


def succeeds(gitea: Client, at: str) -> None:
    """The job ends well; AssertionError if it does not in time."""

    def ended() -> None:
        found = job(gitea, at)
        assert (found["status"], found.get("conclusion")) == ("completed", "success"), f"it is {found['status']}"

    # A slot is looked at once a minute.
    comes_back(ended, 240)


def test_a_job_that_gitea_hands_out_late_is_run(site: TestSite, gitea: Client, repository: str) -> None:
    """Gitea gives a job away, then writes its status, then answers: whoever has gone by then has lost the job."""
    site.on("s1", SLOTS.format("stop"))
    try:
        push(gitea, repository)
        late = "begin; lock table commit_status; select pg_sleep(12); commit"
        site.on("s1", f"cd /; systemd-run -q --uid=postgres psql -qXc '{late}' gitea")
    finally:
        site.on("s1", SLOTS.format("start"))
    succeeds(gitea, repository)


def test_a_slot_that_gitea_has_forgotten_registers_again(site: TestSite, gitea: Client, repository: str) -> None:
    """A runner that was deleted by hand, or is missing in a restored database, is no end of its slot."""
    for one in gitea.must("GET", "/api/v1/admin/actions/runners?limit=50")["runners"]:
        gitea.must("DELETE", f"/api/v1/admin/actions/runners/{one['id']}")
    push(gitea, repository)
    succeeds(gitea, repository)
