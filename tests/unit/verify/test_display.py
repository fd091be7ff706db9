"""What a person sees."""

from __future__ import annotations

import io

from rich.console import Console

from onprem_mlops.verify.display import VerifyDisplay, show
from onprem_mlops.verify.results import Check, Outcome, VerifyResult


def _shown(checks: list[Check]) -> str:
    to = Console(file=io.StringIO(), width=200)
    show(VerifyResult("lab", ("infrastructure",), 1.0, 2.0, tuple(checks)), to)
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def _check(node: str, outcome: Outcome, message: str = "", name: str = "It holds") -> Check:
    return Check("node", node, name, outcome, message, "do this" if message else "")


def test_a_failure_shows_what_was_found_and_what_to_do() -> None:
    text = _shown([_check("w1", "failed", "w1: [found] this"), _check("w2", "passed")])
    assert "✘ node w1 It holds\n  w1: [found] this\n  what to do: do this\n" in text
    assert "1 of 2 checks hold, 1 do not in 2.0 s" in text


def test_one_cause_is_told_once() -> None:
    text = _shown([_check("w1", "not_checked", "w1 is off", f"Check {at}") for at in range(8)])
    assert text.count("w1 is off") == 1
    assert "… and 3 more" in text
    assert "8 could not be checked" in text


def test_a_long_message_is_cut() -> None:
    text = _shown([_check("w1", "failed", "\n".join(f"line {at}" for at in range(40)))])
    assert "line 11" in text and "line 12" not in text and "28 more lines" in text


def test_many_nodes_share_a_column_unless_something_is_wrong() -> None:
    checks = [_check(f"n{at}", "passed") for at in range(50)] + [_check("n7", "failed", "found this", "Other")]
    header = _shown(checks).splitlines()[2]
    assert "n7" in header and "49 others" in header and "n8" not in header


def test_elsewhere_than_on_a_terminal_only_what_is_wrong_is_told() -> None:
    assert (
        _told([("passed", ""), ("failed", "x"), ("not_checked", "w1 is off")])
        == "✘ w1: failed 1\n? w1: not_checked 2\n"
    )


def test_what_keeps_many_checks_from_being_made_is_told_with_the_first() -> None:
    off: tuple[Outcome, str] = ("not_checked", "w1 is off")
    other: tuple[Outcome, str] = ("not_checked", "w2 is off")
    assert _told([off, off, other, off]) == "? w1: not_checked 0\n? w1: not_checked 2\n"
    same: tuple[Outcome, str] = ("failed", "w1 is wrong")
    assert _told([same, same]) == "✘ w1: failed 0\n✘ w1: failed 1\n"


def _told(checks: list[tuple[Outcome, str]]) -> str:
    """What is told while checks end; each is called by its outcome and its place."""
    to = Console(file=io.StringIO(), width=200)
    display = VerifyDisplay(to)
    with display.showing():
        for at, (outcome, message) in enumerate(checks):
            of = {"role": "node", "node": "w1", "name": f"{outcome} {at}", "message": message}
            display({"kind": "check", "outcome": outcome, **of})
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue().replace("node w1", "w1")
