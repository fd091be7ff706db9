"""The engine on this machine through pyinfra's own local connector: real commands, in folders of the test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# The engine needs a process that gevent has patched from its first line, and pytest's is not. Each scenario is a
# function of scenarios.py, run in a process of its own.
SCENARIOS = Path(__file__).with_name("scenarios.py")


def scenario(name: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(SCENARIOS), name, str(folder)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_plan_changes_nothing_and_shows_what_a_deploy_then_does(tmp_path: Path) -> None:
    scenario("plan_then_deploy", tmp_path)


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    scenario("second_run", tmp_path)


def test_values_flow_from_step_to_step_and_are_pending_in_a_plan(tmp_path: Path) -> None:
    scenario("values", tmp_path)


def test_a_failure_stays_on_its_node_and_stops_what_follows(tmp_path: Path) -> None:
    scenario("failure", tmp_path)


def test_what_belongs_to_the_cluster_runs_on_a_node_that_can_be_reached(tmp_path: Path) -> None:
    scenario("lost_node", tmp_path)


def test_a_defect_in_a_role_is_a_failure_of_that_node(tmp_path: Path) -> None:
    scenario("defect", tmp_path)


def test_a_run_whose_log_cannot_be_written_ends(tmp_path: Path) -> None:
    assert "Traceback" not in scenario("full_disk_here", tmp_path)


def test_a_node_that_a_role_refuses_is_named_before_any_is_touched(tmp_path: Path) -> None:
    scenario("refused_node", tmp_path)


def test_a_fact_is_read_again_after_a_change_only(tmp_path: Path) -> None:
    scenario("memory", tmp_path)


def test_files_of_others_keep_what_others_wrote(tmp_path: Path) -> None:
    scenario("files_of_others", tmp_path)


def test_folders_of_files_can_be_read_whatever_the_umask(tmp_path: Path) -> None:
    scenario("umask", tmp_path)


def test_a_download_that_fails_says_why(tmp_path: Path) -> None:
    scenario("downloads", tmp_path)


def test_a_folder_is_replaced_by_an_archive_whole_or_not_at_all(tmp_path: Path) -> None:
    scenario("archives", tmp_path)


def test_steps_wait_only_for_what_they_need(tmp_path: Path) -> None:
    scenario("barriers", tmp_path)


def test_a_rolling_step_takes_one_node_after_the_other_and_stops_at_the_first_that_fails(tmp_path: Path) -> None:
    scenario("rolling", tmp_path)


def test_secret_content_is_in_no_event(tmp_path: Path) -> None:
    scenario("secrets", tmp_path)
