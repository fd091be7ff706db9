"""testinfra over a connection: quoting, streams, and messages that a person can read."""

from __future__ import annotations

import subprocess
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from onprem_mlops.shell import Completed, Connection, Endpoint, Unreachable
from onprem_mlops.site import Node
from onprem_mlops.verify.backend import NodeHost
from onprem_mlops.verify.outcomes import NotChecked


class LocalConnection(Connection):
    """Runs commands on this machine."""

    attempts = 0

    def connect(self) -> None:
        self.attempts += 1
        raise Unreachable("n1 (192.0.2.1): no SSH connection", "Check that the node is up.")

    def run(self, command: str, *, stdin: str | None = None, timeout: float | None = None) -> Completed:
        given = (stdin or "").encode()
        done = subprocess.run(["sh", "-c", command], input=given, capture_output=True, timeout=timeout, check=False)
        return Completed(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def connection() -> LocalConnection:
    return LocalConnection(Endpoint("n1", "192.0.2.1", 22, "mlops", Path("key"), "ssh-ed25519 AAAA", sudo=True))


@pytest.fixture
def host(connection: LocalConnection) -> NodeHost:
    node = Node(name="n1", address=IPv4Address("192.0.2.1"), host_key="ssh-ed25519 " + KEY, groups=("web",))
    return NodeHost(connection, node)


KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIN6bMLWuH38JSFVmKNbk3wYd/EAsIurK2RRUkekuL+Qe"


def test_modules_of_testinfra_work(host: NodeHost, tmp_path: Path) -> None:
    file = tmp_path / "a name; with $pecial characters"
    file.write_text("täxt\n")
    file.chmod(0o640)
    assert host.file(str(file)).mode == 0o640
    assert host.file(str(file)).content_string == "täxt\n"
    assert host.file(str(tmp_path)).is_directory


def test_streams(host: NodeHost) -> None:
    done = host.run("cat; printf %s >&2; exit 3", "it's")
    assert (done.rc, done.stdout, done.stderr) == (3, "", "it's")
    assert host.feed("tr a-z A-Z", "given\n").stdout == "GIVEN\n"
    assert host.run("printf '\\377'").stdout == "�"


def test_a_failed_command_is_told_in_a_line(host: NodeHost) -> None:
    with pytest.raises(AssertionError, match=r"n1: `ls /nowhere` ended with 2 and said: .*No such file"):
        host.check_output("ls %s", "/nowhere")


def test_an_unreachable_node_is_tried_once(host: NodeHost, connection: LocalConnection) -> None:
    for _ in range(3):
        with pytest.raises(NotChecked, match="no SSH connection"):
            host.connect()
    assert connection.attempts == 1
