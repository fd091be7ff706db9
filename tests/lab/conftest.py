"""Tests that boot nodes: they need root and take minutes."""

from __future__ import annotations

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker, so that `-m "not lab"` leaves these tests out."""
    config.addinivalue_line("markers", "lab: boots nodes on this machine as containers; needs root")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without root nothing here can be checked, and that must show."""
    for item in items:
        if item.get_closest_marker("lab") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="booting nodes needs root"))
