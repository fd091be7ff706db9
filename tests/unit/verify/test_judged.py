"""How an error in a suite is judged."""

from __future__ import annotations

from pathlib import Path

from onprem_mlops.verify.plugin import judged


def test_a_file_that_is_not_on_this_machine_is_named() -> None:
    """As the kubeconfig on a machine that never deployed: nothing is wrong with the node."""
    try:
        (Path("/nowhere") / "kubeconfig").stat()
    except FileNotFoundError as error:
        outcome, message, advice = judged(error)
    assert (outcome, message) == ("not_checked", "/nowhere/kubeconfig does not exist on this machine")
    assert "`./mlops deploy`" in advice
    assert judged(FileNotFoundError("without a name"))[0] == "failed"
