"""What is missing from the operating system: installed when root on Debian, saying so."""

from __future__ import annotations

from pathlib import Path

import pytest

from onprem_mlops import prerequisites
from onprem_mlops.errors import RequestError

APT_GET = """\
#!/bin/sh
# Plays apt-get: a package is there after an update, and is then a command of its name.
echo "$*" >>{folder}/calls
case "$1" in
    update) touch {folder}/updated ;;
    install) [ -e {folder}/updated ] || {{ echo "E: Unable to locate package" >&2; exit 100; }}
        for name; do :; done; [ "$name" = absent ] && {{ echo "E: no such package" >&2; exit 100; }}
        touch {folder}/"$name"; chmod 755 {folder}/"$name" ;;
esac
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Debian machine whose commands lie in this folder; we are root there."""
    (tmp_path / "apt-get").write_text(APT_GET.format(folder=tmp_path))
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return tmp_path


def test_what_is_missing_is_installed_and_told(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prerequisites.require("sh", "some-tool")
    assert capsys.readouterr().err == "installing on this machine: some-tool\n"
    assert (machine / "calls").read_text().splitlines() == [
        "install -y --no-install-recommends -o DPkg::Lock::Timeout=600 some-tool",
        "update",
        "install -y --no-install-recommends -o DPkg::Lock::Timeout=600 some-tool",
    ]
    prerequisites.require("sh", "some-tool")
    assert len((machine / "calls").read_text().splitlines()) == 3


def test_what_cannot_be_installed_is_told_with_the_last_words(machine: Path) -> None:
    with pytest.raises(RequestError, match="cannot install absent") as caught:
        prerequisites.require("absent")
    assert "E: no such package" in caught.value.message
    assert caught.value.advice == "run: apt-get install -y --no-install-recommends absent"


def test_who_is_not_root_is_told_the_command(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RequestError, match="missing on this machine: mmdebstrap, gcc") as caught:
        prerequisites.require("mmdebstrap", "gcc")
    assert caught.value.advice.endswith("sudo apt-get install -y gcc libc6-dev mmdebstrap")
    assert not (machine / "calls").exists()
