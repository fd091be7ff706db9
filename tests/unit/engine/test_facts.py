"""What facts make of what a node says."""

from __future__ import annotations

import pytest

from onprem_mlops.engine.facts import Unit

STARTED, RELOADED = 1763879400.25, 1763879460.5
SAID = """LoadState=loaded
ActiveState=active
UnitFileState=enabled
NeedDaemonReload=no
ActiveEnterTimestamp=Sun 2025-11-23 06:30:00.250000 UTC
StateChangeTimestamp=Sun 2025-11-23 06:31:00.500000 UTC
ReloadResult={result}
UnitsLoadTimestamp=Sun 2025-11-23 06:29:00.000000 UTC"""


@pytest.mark.parametrize("result, read_again", [("success", RELOADED), ("exit-code", STARTED)])
def test_only_a_reload_that_went_well_counts(result: str, read_again: float) -> None:
    now = Unit().process(SAID.format(result=result).splitlines())
    assert (now.started, now.reloaded) == (STARTED, read_again)
