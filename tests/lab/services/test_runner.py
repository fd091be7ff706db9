"""Slots that take jobs whatever befalls Gitea: one that answers late, one that has forgotten them, one that cancels."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.clients import Client
from tests.lab.services.at_work import comes_back, new_repository
from tests.lab.sites import TestSite

pytestmark = pytest.mark.lab

SLOTS = {"s1-1", "s1-2"}
SYSTEMCTL = "/usr/bin/systemctl {} onprem-gitea-runner@1 onprem-gitea-runner@2"
SECONDS = 240
"""The slots are looked at once a minute, and this machine has much to do."""


@pytest.fixture
def repository(gitea: Client) -> Iterator[str]:
    """Where the API has a repository that nobody else uses; gone at the end."""
    at = new_repository(gitea)
    yield at
    gitea.must("DELETE", at)


def push(gitea: Client, at: str, command: str = "echo done") -> None:
    """A workflow of one job, which its own commit runs."""
    text = f"on: [push]\njobs:\n  works:\n    runs-on: s1\n    steps:\n      - run: {command}\n"
    change = {"content": base64.b64encode(text.encode()).decode(), "message": "a job", "branch": "main"}
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

    comes_back(ended, SECONDS)


def runners(gitea: Client) -> list[dict[str, Any]]:
    """All that Gitea knows."""
    found: list[dict[str, Any]] = gitea.must("GET", "/api/v1/admin/actions/runners?limit=50")["runners"]
    return found


def waiting(gitea: Client, *gone: int) -> set[int]:
    """The runners that wait for jobs at all slots, none of them one of those that are gone."""
    new = {one["name"]: one["id"] for one in runners(gitea) if one["status"] == "online" and one["id"] not in gone}
    assert new.keys() >= SLOTS, f"only {sorted(new)} wait for jobs"
    return {new[name] for name in SLOTS}


def test_a_job_that_gitea_hands_out_late_is_run(site: TestSite, gitea: Client, repository: str) -> None:
    """Gitea gives a job away, then writes its status, then answers: whoever has gone by then has lost the job."""
    held = (
        "select 1 from pg_locks where relation = 'commit_status'::regclass and mode = 'AccessExclusiveLock' and granted"
    )
    site.on("s1", SYSTEMCTL.format("stop"))
    try:
        push(gitea, repository)
        late = "begin; lock table commit_status; select pg_sleep(15); commit"
        site.on("s1", f"cd /; systemd-run -q --uid=postgres psql -qXc '{late}' gitea")

        def locked() -> None:
            assert site.on("s1", f'cd /; runuser -u postgres -- psql -qXAtc "{held}" gitea') == "1"

        comes_back(locked, 10)
    finally:
        site.on("s1", SYSTEMCTL.format("start"))
    succeeds(gitea, repository)


def test_slots_that_gitea_has_forgotten_begin_anew(gitea: Client, repository: str) -> None:
    """A runner that was deleted by hand, or is missing in a restored database, is no end of its slot."""
    old = comes_back(lambda: waiting(gitea))
    for one in old:
        gitea.must("DELETE", f"/api/v1/admin/actions/runners/{one}")
    push(gitea, repository)
    succeeds(gitea, repository)
    comes_back(lambda: waiting(gitea, *old), SECONDS)


def test_a_job_that_is_nobodys_any_more_frees_its_slot(site: TestSite, gitea: Client) -> None:
    """Gitea does not tell a runner that its job was cancelled, by hand or with its repository: it forgets both."""
    comes_back(lambda: waiting(gitea))
    at = new_repository(gitea)
    push(gitea, at, "sleep 3600")

    def at_work() -> int:
        busy = [one["id"] for one in runners(gitea) if one["busy"]]
        assert len(busy) == 1, f"{len(busy)} runners are at work"
        return int(busy[0])

    runner = comes_back(at_work)
    gitea.must("DELETE", at)
    # At the first look it might just have ended.
    for _ in range(2):
        site.on("s1", "systemctl start onprem-gitea-runner-watch")
    comes_back(lambda: waiting(gitea, runner))
