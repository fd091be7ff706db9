"""init, validate, secrets and certs as a person types them."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address
from pathlib import Path

import paramiko
import pyrage
import pytest

from onprem_mlops.cli import run
from onprem_mlops.errors import RequestError
from onprem_mlops.site import load_site
from onprem_mlops.site.creation import NewNode
from onprem_mlops.site.host_keys import scan_host_keys

KEYS = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + letter * 43 for letter in "ABC"]
NODES = ["cp1=192.0.2.11:control_plane", "w1=192.0.2.21:worker", "s1=192.0.2.31:services,backup"]
NAMES = ["cp1", "w1", "s1"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("MLOPS_INVENTORY", raising=False)
    return folder


def init_arguments(name: str = "plant") -> list[str]:
    arguments = ["init", name, "--yes", "--domain", "plant.example.com", "--network", "192.0.2.0/24"]
    for node, key in zip(NODES, KEYS, strict=True):
        arguments += ["--node", node, "--host-key", f"{node.partition('=')[0]}={key}"]
    return arguments


@pytest.fixture
def plant() -> list[str]:
    """A fresh site; gives the options that choose it."""
    assert run(init_arguments()) == 0
    return ["-i", "inventories/plant"]


def test_init_makes_a_whole_site(here: Path, home: Path, plant: list[str]) -> None:
    folder = here / "inventories/plant"
    assert {file.name: oct(file.stat().st_mode)[-3:] for file in folder.iterdir()} == {
        "ca.pem": "644",
        "inventory.py": "644",
        "recipients.txt": "644",
        "secrets.yaml.age": "600",
        "site.yaml": "644",
    }
    assert [one.name for one in (here / "inventories").iterdir()] == ["plant"]
    site = load_site(folder)
    assert [(node.name, node.host_key) for node in site.nodes] == list(zip(NAMES, KEYS, strict=True))
    identity = home / ".config/onprem-mlops/identity.txt"
    assert identity.stat().st_mode & 0o777 == 0o600
    assert "AGE-SECRET-KEY" not in "".join(file.read_text(errors="ignore") for file in folder.iterdir())
    compile((folder / "inventory.py").read_text(), "inventory.py", "exec")


def test_init_uses_the_identity_there_is(here: Path, plant: list[str]) -> None:
    assert run(init_arguments("second")) == 0
    recipients = [Path(f"inventories/{name}/recipients.txt").read_text() for name in ("plant", "second")]
    assert recipients[0] == recipients[1]


def test_init_overwrites_nothing(here: Path, plant: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.read_bytes() for file in (here / "inventories/plant").iterdir()}
    assert run(init_arguments()) == 2
    assert "inventories/plant exists already" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in (here / "inventories/plant").iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plant": "Plant"}, 'has upper-case letters; write "plant"'),
        ({"plant.example.com": "plant"}, '"plant" is not a domain'),
        ({"192.0.2.0/24": "the office"}, '"the office" is not a network'),
        ({NODES[1]: "w1=192.0.2.11:worker"}, '192.0.2.11 is already the address of node "cp1"'),
        ({NODES[1]: "w1=192.0.2.21:wroker"}, 'unknown group "wroker"; did you mean "worker"?'),
        ({NODES[1]: "w1"}, '"w1" is not a node'),
        ({f"w1={KEYS[1]}": "w1=ssh-rsa AAAA"}, "is not a host key"),
        ({f"w1={KEYS[1]}": f"w2={KEYS[1]}"}, "is no node of this site"),
        ({"--domain": "--description"}, "No such option"),
    ],
)
def test_a_wrong_init_makes_nothing(
    change: dict[str, str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([change.get(argument, argument) for argument in init_arguments()]) == 2
    assert message in capsys.readouterr().err
    assert [*here.rglob("*.yaml"), *here.rglob("*.age"), *here.rglob(".P*"), *here.rglob(".plant*")] == []


def test_init_never_takes_a_host_key_on_sight(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    arguments = [
        a for a in init_arguments() if a not in ("--host-key", *(f"{n}={k}" for n, k in zip(NAMES, KEYS, strict=True)))
    ]
    assert run(arguments) == 2
    assert "nobody can confirm the host keys of cp1, w1, s1" in capsys.readouterr().err
    assert run([*arguments[:2], *arguments[3:]]) == 2
    assert list(here.iterdir()) == []


def test_without_a_terminal_everything_comes_from_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "plant"]) == 2
    assert "--domain is missing" in capsys.readouterr().err


def test_init_asks(here: Path, home: Path) -> None:
    """On a terminal: the answers of a person, typed ahead, make the same site."""
    answers = ["plant.example.com", *NODES, "", "192.0.2.0/24"]
    command = [sys.executable, "-m", "onprem_mlops", "init", "plant"]
    for name, key in zip(NAMES, KEYS, strict=True):
        command += ["--host-key", f"{name}={key}"]
    controller, terminal = pty.openpty()
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, cwd=here)
    os.close(terminal)
    os.write(controller, "".join(f"{answer}\n" for answer in answers).encode())
    shown = _drain(controller)
    assert process.wait(60) == 0, shown
    assert [node.name for node in load_site(here / "inventories/plant").nodes] == NAMES


def _drain(descriptor: int) -> str:
    shown = b""
    with suppress(OSError):  # the other end is closed when the process ends
        while chunk := os.read(descriptor, 4096):
            shown += chunk
    os.close(descriptor)
    return shown.decode()


def test_what_is_no_node() -> None:
    for text in ("", "cp1", "cp1=192.0.2.11", "=192.0.2.11:worker", "cp1=cp1.example.com:worker", "cp1=192.0.2.11:"):
        with pytest.raises(RequestError, match="is not a node"):
            NewNode.parse(text)


# validate


def test_validate(plant: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["validate", *plant, "--json", "result.json"]) == 0
    assert "Site plant is right: 3 nodes" in capsys.readouterr().out
    result = json.loads(Path("result.json").read_text())
    assert result["schema"] == "onprem-mlops/validate/v1"
    assert (result["valid"], result["nodes"]) == (True, NAMES)


RISKY = """
from onprem_mlops.roles import RoleSettings

class Settings(RoleSettings):
    \"\"\"A program that nobody looks after.\"\"\"

    def notices(self, site):
        yield f"[nobody] looks after it in {site.name}; plan its successor"
"""


def test_validate_shows_what_people_should_know(plant: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    role = Path("inventories/plant/roles/risky")
    role.mkdir(parents=True)
    (role / "settings.py").write_text(RISKY)
    capsys.readouterr()
    assert run(["validate", *plant, "--json", "result.json"]) == 0
    assert "note risky: [nobody] looks after it in plant; plan its successor" in capsys.readouterr().out
    result = json.loads(Path("result.json").read_text())
    assert {"role": "risky", "message": "[nobody] looks after it in plant; plan its successor"} in result["notices"]


def test_validate_prints_every_problem_at_its_place(plant: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    file = Path("inventories/plant/site.yaml")
    file.write_text(file.read_text().replace("192.0.2.21", "192.0.2.11").replace("ssh:", "shh:"))
    capsys.readouterr()
    assert run(["validate", *plant, "--json", "result.json"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("inventories/plant/site.yaml:")
    assert lines[0].endswith(': unknown key `shh`; did you mean "ssh"?')
    result = json.loads(Path("result.json").read_text())
    assert result["valid"] is False
    assert [problem["column"] for problem in result["problems"]] == [1, 14]


def test_validate_without_a_site(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "-i", "nowhere"]) == 2
    assert "nowhere/site.yaml does not exist" in capsys.readouterr().err


# secrets and certs


def test_secrets(plant: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    capsys.readouterr()
    assert run(["secrets", "show", *plant, "--json", "result.json"]) == 0
    listed = capsys.readouterr().out
    assert "encryption_key" in listed
    assert run(["secrets", "show", "kubernetes", "encryption_key", *plant]) == 0
    value = capsys.readouterr().out.strip()
    assert value not in listed
    assert value not in Path("result.json").read_text()
    assert run(["secrets", "show", "--reveal", *plant, "--json", "result.json"]) == 0
    assert value in capsys.readouterr().out
    assert json.loads(Path("result.json").read_text())["values"]["kubernetes"]["encryption_key"] == value
    assert Path("result.json").stat().st_mode & 0o777 == 0o600
    assert run(["secrets", "show", "kubernetse", *plant]) == 2
    assert 'no secrets of a role "kubernetse"' in capsys.readouterr().err
    assert run(["secrets", "rotate", "kubernetes", "encryption_key", *plant]) == 2
    assert "cannot be replaced just so" in capsys.readouterr().err

    monkeypatch.setenv("EDITOR", "sed -i '$aown:\\n  token: mine'")
    assert run(["secrets", "edit", *plant, "--json", "result.json"]) == 0
    assert json.loads(Path("result.json").read_text())["changed"] is True
    capsys.readouterr()
    assert run(["secrets", "show", "own", "token", *plant]) == 0
    assert capsys.readouterr().out == "mine\n"

    monkeypatch.setenv("EDITOR", "truncate -s 0")
    assert run(["secrets", "edit", *plant]) == 2
    refused = capsys.readouterr().err
    assert "depend on authority key, " in refused
    assert " kubernetes encryption_key, " in refused
    assert "which would be lost" in refused
    assert run(["secrets", "show", "kubernetes", "encryption_key", *plant]) == 0
    assert capsys.readouterr().out.strip() == value


def test_recipients(plant: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    key = str(pyrage.x25519.Identity.generate().to_public())
    assert run(["secrets", "add-recipient", key, "--name", "Ada", *plant, "--json", "result.json"]) == 0
    assert [one["key"] for one in json.loads(Path("result.json").read_text())["recipients"]][1] == key
    assert run(["secrets", "remove-recipient", "Ada", *plant]) == 0
    assert run(["secrets", "remove-recipient", "Ada", *plant]) == 2
    assert run(["secrets", "add-recipient", "nonsense", "--name", "Ada", *plant]) == 2
    assert "is not a recipient" in capsys.readouterr().err


def test_certs(plant: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["certs", "list", *plant, "--json", "result.json"]) == 0
    assert "not issued yet" in capsys.readouterr().out
    result = json.loads(Path("result.json").read_text())
    assert result["schema"] == "onprem-mlops/certs/v1"
    assert {row["name"] for row in result["certificates"]} >= {"authority", "mirror"}
    before = Path("inventories/plant/ca.pem").read_bytes()
    assert run(["certs", "renew-authority", "--yes-destroy", "other", *plant]) == 2
    assert Path("inventories/plant/ca.pem").read_bytes() == before
    assert run(["certs", "renew-authority", "--yes-destroy", "plant", *plant, "--json", "result.json"]) == 0
    assert Path("inventories/plant/ca.pem").read_bytes() != before


# Host keys


@contextmanager
def ssh_server(key: paramiko.PKey) -> Iterator[int]:
    """An SSH server that shows ``key``; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    transport = paramiko.Transport(connection)
                    transport.add_server_key(key)
                    with suppress(paramiko.SSHException, EOFError):
                        transport.start_server(server=paramiko.ServerInterface())

        threading.Thread(target=answer, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def test_scan(tmp_path: Path) -> None:
    file = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(file)], check=True)
    address = IPv4Address("127.0.0.1")
    with ssh_server(paramiko.Ed25519Key.from_private_key_file(str(file))) as port:
        assert scan_host_keys([address], port) == {address: file.with_suffix(".pub").read_text().strip()}
    with pytest.raises(RequestError, match=r"no ed25519 host key from 127\.0\.0\.1"):
        scan_host_keys([address], port)
