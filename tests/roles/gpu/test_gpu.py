"""Steps of the role gpu on nodes that are data."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.roles.harness import Case, cases, check


@pytest.mark.parametrize("case", cases("gpu"))
def test_step(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path)
