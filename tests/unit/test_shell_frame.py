"""The frame around a command, run by a real `sh`: no node needed to show that no output can break it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paramiko
import pytest

from onprem_mlops.shell import Connection, Endpoint, Unreachable, _ended, _frame

WORD = "0123456789abcdef01234567"


def run(command: str, stdin: str | None = None, *, inside: bool = False, then: str = "") -> tuple[int, bytes, bytes]:
    """Feed one frame to `sh -s` and take status, output and errors apart as the connection does."""
    script = _frame(command, stdin, WORD, inside=inside) + then
    done = subprocess.run(["sh", "-s"], input=script.encode(), capture_output=True, check=False, timeout=20)
    begin, end = f"<{WORD}>\n".encode(), f"\n>{WORD} ".encode()
    assert _ended(bytearray(done.stdout), end) or then
    body, _, tail = done.stdout.partition(begin)[2].rpartition(end)
    return int(tail.split()[0]), body, done.stderr.partition(begin)[2].rpartition(end)[0]


@pytest.mark.parametrize(
    ("command", "status", "out"),
    [
        ("echo hello", 0, b"hello\n"),
        ("printf none", 0, b"none"),
        ("true", 0, b""),
        ("exit 3", 3, b""),
        ("printf '\\000\\377\\n\\n'", 0, b"\x00\xff\n\n"),
        ('echo "it\'s" \'"quoted"\'', 0, b'it\'s "quoted"\n'),
        ("if then", 2, b""),
        ("echo 'unbalanced", 2, b""),
        ("cat <<X\nhere $((1+1))\nX", 0, b"here 2\n"),
        (f"echo '>{WORD[:-1]} 0'", 0, f">{WORD[:-1]} 0\n".encode()),
        ("cat", 0, b""),
    ],
)
def test_a_command_gives_exactly_its_own_output(command: str, status: int, out: bytes) -> None:
    assert run(command)[:2] == (status, out)


def test_standard_error_stays_apart() -> None:
    assert run("echo out; echo err >&2") == (0, b"out\n", b"err\n")


def test_standard_input_reaches_the_command_and_not_the_shell() -> None:
    assert run("cat; echo end", "exit 9\n$HOME `id`\n") == (0, b"exit 9\n$HOME `id`\nend\n", b"")


def test_a_subshell_cannot_change_the_shell_but_inside_can() -> None:
    assert run("cd /usr; X=1", then='pwd; echo "x=$X"\n')[0] == 0
    script = _frame("X=held", None, WORD, inside=True) + 'echo "x=$X"\n'
    done = subprocess.run(["sh", "-s"], input=script.encode(), capture_output=True, check=True)
    assert done.stdout.endswith(b"x=held\n")


def test_a_command_does_not_inherit_the_lock() -> None:
    script = "exec 9>/dev/null\n" + _frame(
        "test -e /proc/self/fd/9 && echo held || echo free", None, WORD, inside=False
    )
    done = subprocess.run(["sh", "-s"], input=script.encode(), capture_output=True, check=True)
    assert b"free" in done.stdout


class Dying:
    """A channel to a node that goes down: whatever is asked of it ends with this error."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def exec_command(self, command: str) -> None:
        raise self._error


@pytest.mark.parametrize(
    "error", [OSError("Socket is closed"), EOFError(), TimeoutError(), paramiko.SSHException("gone")]
)
@pytest.mark.parametrize("ask", [lambda one: one.run("true"), lambda one: one.hold("true", expect="")])
def test_a_shell_that_dies_while_it_begins_is_a_broken_connection(
    error: Exception, ask: Callable[[Connection], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection(Endpoint("n1", "192.0.2.1", 22, "somebody", Path("/nowhere"), "ssh-ed25519 AAAA", True))
    monkeypatch.setattr(connection, "_session", lambda: Dying(error))
    with pytest.raises(Unreachable, match=r"n1 \(192\.0\.2\.1\): the connection broke: .+"):
        ask(connection)
