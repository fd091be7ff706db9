"""Tests that boot nodes: they need root and take minutes.

What shares a lab is a group: a folder, or else a file. Groups run side by side (`pytest -n 2 --dist loadgroup`), each
in a lab with addresses of its own.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LONGEST_FIRST = ("services", "test_gpu", "cluster", "test_ha", "test_several_nodes")
"""So that no long group begins when the others are done."""


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker, so that `-m "not lab"` leaves these tests out."""
    config.addinivalue_line("markers", "lab: boots nodes on this machine as containers; needs root")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group what shares a lab. Without root nothing here can be checked, and that must show."""
    ours = [item for item in items if item.get_closest_marker("lab")]
    for item in ours:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
        if os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="booting nodes needs root"))
    items.sort(key=lambda item: _rank(_group(item)) if item in ours else -1)


def _group(item: pytest.Item) -> str:
    return Path(item.path.relative_to(HERE).parts[0]).stem


def _rank(group: str) -> int:
    return LONGEST_FIRST.index(group) if group in LONGEST_FIRST else len(LONGEST_FIRST)
