"""The launcher `./mlops`: makes its environment once, whole or not at all, and hands over."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from onprem_mlops.paths import REPOSITORY

PYTHON = """\
#!/bin/sh
# Plays Python: makes an environment whose Python is itself, and writes down what it was asked.
echo "$(basename "$(dirname "$(dirname "$0")")") $*" >>"$CALLS"
case "$*" in
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    *"pip install"*) sleep 0.1; [ -z "$PIP_FAILS" ] || { echo "no index" >&2; exit 1; } ;;
    "-m onprem_mlops"*) echo "handed over: $*" ;;
esac
"""


class Clone:
    """A clone of the repository as far as the launcher looks at it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "clone"
        self.calls = folder / "calls"
        self.folder.mkdir()
        shutil.copy(REPOSITORY / "mlops", self.folder)
        (self.folder / "requirements.lock").write_text("tool==1.0 --hash=sha256:00\n")
        python = folder / "bin/python3"
        python.parent.mkdir()
        python.write_text(PYTHON)
        python.chmod(0o755)
        self._environment = {"PATH": f"{python.parent}:/usr/bin:/bin", "CALLS": str(self.calls)}

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Begin a command."""
        return subprocess.Popen(
            [self.folder / "mlops", *words],
            env={**self._environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )

    def made(self) -> int:
        """How often an environment was made."""
        return sum(" -m venv " in line for line in self.calls.read_text().splitlines())


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_the_first_use_makes_the_environment_and_later_ones_find_it(clone: Clone) -> None:
    out, said = clone.start("status", "-i", "a b").communicate(timeout=30)
    assert out == "handed over: -m onprem_mlops status -i a b\n"
    assert "Making .venv" in said
    assert clone.start("status").communicate(timeout=30) == ("handed over: -m onprem_mlops status\n", "")
    assert clone.made() == 1
    installed = [line for line in clone.calls.read_text().splitlines() if "pip install" in line]
    assert "--require-hashes" in installed[0]
    assert "--no-deps" in installed[1]


def test_another_lock_makes_it_anew(clone: Clone) -> None:
    clone.start("status").communicate(timeout=30)
    (clone.folder / "requirements.lock").write_text("tool==2.0 --hash=sha256:11\n")
    clone.start("status").communicate(timeout=30)
    assert clone.made() == 2


def test_a_half_made_environment_is_made_anew(clone: Clone) -> None:
    failed = clone.start("status", PIP_FAILS="1")
    out, said = failed.communicate(timeout=30)
    assert (failed.returncode, out) == (2, "")
    assert "error could not install the locked packages" in said
    assert clone.start("status").communicate(timeout=30)[0] == "handed over: -m onprem_mlops status\n"


def test_two_first_uses_at_once_make_it_once(clone: Clone) -> None:
    both = [clone.start("status") for _ in range(2)]
    assert [one.communicate(timeout=30)[0] for one in both] == ["handed over: -m onprem_mlops status\n"] * 2
    assert clone.made() == 1


def test_it_is_found_through_a_link(clone: Clone, tmp_path: Path) -> None:
    link = tmp_path / "mlops"
    link.symlink_to(clone.folder / "mlops")
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:/usr/bin:/bin", "CALLS": str(clone.calls)}
    done = subprocess.run([link, "status"], env=environment, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "handed over: -m onprem_mlops status\n"
    assert (clone.folder / ".venv").is_dir()


def test_the_lock_names_no_host() -> None:
    lock = (REPOSITORY / "requirements.lock").read_text()
    assert "://" not in lock
    assert "--index" not in lock
    pinned = [line for line in lock.splitlines() if "==" in line]
    assert len(pinned) > 20
    assert lock.count("--hash=sha256:") >= len(pinned)
