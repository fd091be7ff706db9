"""One maker for all: who waits, and who goes on when it fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyinfra.context import ctx_host

from onprem_mlops.engine.operations.handing import Maker
from onprem_mlops.errors import MlopsError

HELD_SECONDS = 0.5
"""Long enough that a busy machine starts the next node meanwhile."""


class State:
    """Of a run."""


def at_once(names: tuple[str, ...], enter: Callable[[], AbstractContextManager[None]], fails: str = "") -> list[str]:
    """What nodes of one run that enter at the same time do there, in order; the refused ones say so."""
    state, said = State(), []

    def work(name: str) -> None:
        ctx_host.set(SimpleNamespace(name=name, state=state))
        try:
            with enter():
                said.append(f"{name} begins")
                time.sleep(HELD_SECONDS)
                if name == fails:
                    raise MlopsError(f"{name} fails")
                said.append(f"{name} ends")
        except MlopsError as error:
            said.append(error.message)

    threads = []
    for name in names:
        threads.append(threading.Thread(target=work, args=(name,)))
        threads[-1].start()
        time.sleep(HELD_SECONDS / 5)
    for thread in threads:
        thread.join()
    return said


def test_one_node_makes_it_while_the_others_wait(tmp_path: Path) -> None:
    said = at_once(("g1", "g2"), lambda: Maker.first(tmp_path / "modules"))
    assert said == ["g1 begins", "g1 ends", "g2 begins", "g2 ends"]


def test_once_one_could_not_make_it_all_try_at_once(tmp_path: Path) -> None:
    said = at_once(("g1", "g2", "g3"), lambda: Maker.first(tmp_path / "modules"), fails="g1")
    assert said[:2] == ["g1 begins", "g1 fails"]
    assert sorted(said[2:4]) == ["g2 begins", "g3 begins"], said


@pytest.mark.parametrize("other", ["modules", "others"])
def test_different_things_are_made_side_by_side(tmp_path: Path, other: str) -> None:
    kept = iter((tmp_path / "modules", tmp_path / other))
    said = at_once(("g1", "g2"), lambda: Maker.first(next(kept)))
    assert (said[1] == "g2 begins") is (other == "others")
