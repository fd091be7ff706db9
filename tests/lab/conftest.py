"""Tests that boot nodes: they need root and take minutes.

What shares a lab is a group: a folder, or else a file. Groups run side by side (`pytest -n 2 --dist loadscope`), each
in a lab with addresses of its own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

LONGEST_FIRST = ("services", "test_gpu", "cluster", "test_ha", "test_several_nodes")
"""So that no long group begins when the others are done."""


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker, so that `-m "not lab"` leaves these tests out."""
    config.addinivalue_line("markers", "lab: boots nodes on this machine as containers; needs root")


class ByLab(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives a worker all tests that share a lab. `--dist loadgroup` would be for that, but pytest 9.2 and xdist 3.8
    together do not see its groups and give every worker every lab (tests/unit/test_lab_groups.py would show it)."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByLab:
    """Group by lab."""
    return ByLab(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest groups first. Without root nothing here can be checked, and that must show."""
    ours = [item for item in items if item.get_closest_marker("lab")]
    for item in ours:
        if os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="booting nodes needs root"))
    items.sort(key=lambda item: _rank(_group(item.nodeid)) if item in ours else -1)


def _group(nodeid: str) -> str:
    """The folder or the file below tests/lab that a test is in."""
    return Path(nodeid.partition("::")[0]).relative_to("tests/lab").parts[0].removesuffix(".py")


def _rank(group: str) -> int:
    return LONGEST_FIRST.index(group) if group in LONGEST_FIRST else len(LONGEST_FIRST)
