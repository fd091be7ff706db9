"""The look at the cards, as it runs on a node: the rendered program, a stand-in for NVIDIA's library, and an API."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from onprem_mlops.engine.operations.rolling import DEPLOY, EMPTIED
from onprem_mlops.paths import REPOSITORY

NODE = "/api/v1/nodes/g1"
HANGS = "the driver does not answer within"
LIBRARY = '''
"""Answers what a file says, as NVIDIA's bindings would."""

import json, os, pathlib, time

class NVMLError(Exception):
    pass

def nvmlInit():
    said = pathlib.Path(os.environ["CARDS"])
    with said.with_suffix(".asked").open("a") as asked:
        asked.write("x")
    globals().update(json.loads(said.read_text()))
    if hung:
        time.sleep(60)

def nvmlDeviceGetCount():
    return count

def nvmlDeviceGetHandleByIndex(index):
    if index in lost:
        raise NVMLError("GPU is lost")
    return index

def nvmlDeviceGetMemoryInfo(handle):
    return handle
'''


class Api:
    """A Kubernetes API that knows one node, and whom the node's own account can reach."""

    def __init__(self, certificate: Path) -> None:
        self.certificate = certificate
        self.node: dict[str, Any] = {}
        self.events: list[dict[str, Any]] = []
        self.changes: list[str] = []
        """Path and body of what was changed."""
        self.meanwhile = False
        """Whether somebody else changes the node between a look at it and a change."""
        self.port = 0
        self._server: ThreadingHTTPServer | None = None
        self.join()

    def join(self) -> None:
        """The node is new in the cluster."""
        self.node = {
            "metadata": {"name": "g1", "uid": "1", "resourceVersion": "1", "annotations": {"other": "stays"}},
            "spec": {},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        }

    def start(self) -> None:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(200 if self.path == NODE else 404, api.node)
                if api.meanwhile:
                    api.touch()

            def do_PATCH(self) -> None:
                assert self.headers["Content-Type"] == "application/strategic-merge-patch+json"
                body = self.body()
                stale = body.get("metadata", {}).get("resourceVersion", api.version) != api.version
                if not stale:
                    api.changes.append(f"{self.path} {json.dumps(body)}")
                    api.merge(self.path, body)
                self.reply(409 if stale else 200, api.node)

            def do_POST(self) -> None:
                assert self.path == "/api/v1/namespaces/default/events"
                api.events.append(self.body())
                self.reply(201, {})

            def body(self) -> Any:
                return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

            def reply(self, status: int, body: Any) -> None:
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.certificate))
        context.load_cert_chain(self.certificate)
        context.verify_mode = ssl.CERT_REQUIRED
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    @property
    def version(self) -> str:
        return str(self.node["metadata"]["resourceVersion"])

    def touch(self) -> None:
        self.node["metadata"]["resourceVersion"] = str(int(self.version) + 1)

    def merge(self, path: str, body: dict[str, Any]) -> None:
        """What a strategic merge makes of the node."""
        self.touch()
        if path == f"{NODE}/status":
            (new,) = body["status"]["conditions"]
            kept = [one for one in self.node["status"]["conditions"] if one["type"] != new["type"]]
            self.node["status"]["conditions"] = [*kept, new]
            return
        marks = self.node["metadata"]["annotations"] | body["metadata"].get("annotations", {})
        self.node["metadata"]["annotations"] = {key: value for key, value in marks.items() if value is not None}
        self.node["spec"] |= body.get("spec", {})

    def stands(self, mark: str | None, *, cordoned: bool) -> None:
        """Somebody cordoned the node, or let it in."""
        self.merge(NODE, {"metadata": {"annotations": {EMPTIED: mark}}, "spec": {"unschedulable": cordoned or None}})

    @property
    def mark(self) -> str | None:
        marks: dict[str, str] = self.node["metadata"]["annotations"]
        return marks.get(EMPTIED)

    @property
    def cordoned(self) -> bool:
        return bool(self.node["spec"].get("unschedulable"))

    @property
    def condition(self) -> dict[str, str]:
        found: list[dict[str, str]] = self.node["status"]["conditions"]
        return next((one for one in found if one["type"] == "GpusHealthy"), {})


class Watch:
    """A node with two cards that is looked at."""

    def __init__(self, folder: Path, api: Api) -> None:
        self.api = api
        self.run = folder / "run"
        self._cards = folder / "cards"
        self._program = folder / "onprem-gpu-watch"
        (folder / "pynvml.py").write_text(LIBRARY)
        self.run.mkdir()
        self.specification = self.run / "specification.yaml"
        self.specification.touch()
        (folder / "kubelet.conf").write_text(f"clusters:\n- cluster:\n    server: https://127.0.0.1:{api.port}\n")
        self.waits(20)
        self._environment = {**os.environ, "PYTHONPATH": str(folder), "CARDS": str(self._cards)}
        self.cards()

    def waits(self, seconds: int) -> None:
        """How long the driver may take to answer."""
        self._program.write_text(program(self._program.parent, self.api.certificate, seconds))

    def cards(self, *, count: int = 2, lost: tuple[int, ...] = (), hung: bool = False) -> None:
        """How the cards are."""
        self._cards.write_text(json.dumps({"count": count, "lost": lost, "hung": hung}))

    def look(self, code: int = 0) -> str:
        """One look; what it writes into the journal."""
        command = [sys.executable, "-B", str(self._program)]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == code, done.stderr
        return done.stderr

    @property
    def found(self) -> Any:
        return json.loads((self.run / "watch").read_text())

    @property
    def asked(self) -> int:
        """How often the driver was asked."""
        return len(self._cards.with_suffix(".asked").read_text())


def program(folder: Path, certificate: Path, seconds: int) -> str:
    """The program as the role lays it down, but for where things lie and how long it waits."""
    template = (REPOSITORY / "roles/gpu/templates/watch.py.j2").read_text()
    text: str = jinja2.Template(template, undefined=jinja2.StrictUndefined).render(
        node=SimpleNamespace(name="g1"),
        settings=SimpleNamespace(cards=lambda node: 2),
        emptied=EMPTIED,
        specification=folder / "run" / "specification.yaml",
        simulated=True,
    )
    places = {
        "/run/onprem-gpu": str(folder / "run"),
        "/etc/kubernetes/kubelet.conf": str(folder / "kubelet.conf"),
        "/etc/kubernetes/pki/ca.crt": str(certificate),
        "/var/lib/kubelet/pki/kubelet-client-current.pem": str(certificate),
        "SECONDS = 20": f"SECONDS = {seconds}",
    }
    for place, other in places.items():
        assert place in text
        text = text.replace(place, other)
    return text


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for the API, for the node, and for who issued both."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    issued = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("pki") / "all.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + issued.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def api(certificate: Path) -> Iterator[Api]:
    """A cluster that is there."""
    api = Api(certificate)
    api.start()
    yield api
    api.stop()


@pytest.fixture
def watch(tmp_path: Path, api: Api) -> Watch:
    return Watch(tmp_path, api)


def ago(**time: float) -> str:
    return (datetime.datetime.now(datetime.UTC) - datetime.timedelta(**time)).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_cards_that_answer_are_told_once(watch: Watch, api: Api) -> None:
    assert watch.look() == ""
    assert watch.found == []
    assert api.condition["status"] == "True"
    assert "SIMULATED" in api.condition["message"]
    watch.look()
    assert len(api.changes) == 1, api.changes
    assert not api.events


def test_a_lost_card_takes_the_node_out_once(watch: Watch, api: Api) -> None:
    watch.look()
    watch.cards(lost=(1,))
    said = watch.look()
    assert "<1>card 1: GPU is lost\n<1>node g1 is cordoned\n" in said
    assert watch.found == ["card 1: GPU is lost"]
    assert (api.cordoned, api.mark) == (True, "card")
    assert (api.condition["status"], api.condition["message"]) == ("False", "card 1: GPU is lost")
    assert [one["message"] for one in api.events] == ["card 1: GPU is lost"]
    changes = len(api.changes)
    assert "<1>card 1: GPU is lost" in watch.look()
    assert (len(api.changes), len(api.events)) == (changes, 1)


def test_a_node_whose_containers_know_of_no_card_is_taken_out(watch: Watch, api: Api) -> None:
    """The driver answers; what its unit tells containers could not be written."""
    watch.specification.unlink()
    assert "journalctl -u onprem-gpu" in watch.look()
    assert (api.cordoned, api.mark, api.condition["status"]) == (True, "card", "False")


def test_a_node_stays_out_when_its_card_is_back(watch: Watch, api: Api) -> None:
    watch.cards(count=1)
    watch.look()
    assert api.condition["message"] == "1 of 2 cards are not on the bus"
    watch.cards()
    watch.look()
    assert (api.cordoned, api.mark, api.condition["status"]) == (True, "card", "True")
    assert api.node["metadata"]["annotations"]["other"] == "stays"


@pytest.mark.parametrize("mark", [DEPLOY, None])
def test_a_cordon_that_is_there_stays_whose_it_is(watch: Watch, api: Api, mark: str | None) -> None:
    api.stands(mark, cordoned=True)
    watch.cards(lost=(0,))
    assert "is cordoned" not in watch.look()
    assert (api.cordoned, api.mark, api.condition["status"]) == (True, mark, "False")
    watch.cards()
    watch.look()
    assert (api.cordoned, api.mark, api.condition["status"]) == (True, mark, "True")


def test_who_lets_a_node_in_with_a_lost_card_is_obeyed(watch: Watch, api: Api) -> None:
    watch.cards(lost=(0,))
    watch.look()
    api.stands("card", cordoned=False)
    watch.look()
    assert not api.cordoned
    watch.cards(lost=(0, 1))
    watch.look()
    assert api.cordoned, "another card is something new"


@pytest.mark.parametrize("mark", [DEPLOY, "card"])
def test_a_node_that_a_person_let_in_bears_no_mark(watch: Watch, api: Api, mark: str) -> None:
    watch.look()
    api.stands(mark, cordoned=False)
    watch.look()
    assert (api.cordoned, api.mark) == (False, None)


def test_what_a_deploy_does_meanwhile_is_left_alone(watch: Watch, api: Api) -> None:
    api.meanwhile = True
    api.stands(DEPLOY, cordoned=False)
    assert "HTTP 409" in watch.look(1)
    assert api.mark == DEPLOY


def test_the_look_is_recorded_where_the_api_is_away_and_told_when_it_is_back(watch: Watch, api: Api) -> None:
    api.stop()
    watch.cards(lost=(0,))
    said = watch.look(1).splitlines()
    assert said[0] == "<1>card 0: GPU is lost"
    assert "the cluster could not be told" in said[1]
    assert watch.found == ["card 0: GPU is lost"]
    api.start()
    watch.look()
    assert (api.cordoned, api.mark, api.condition["status"], len(api.events)) == (True, "card", "False", 1)


def test_the_condition_is_renewed(watch: Watch, api: Api) -> None:
    watch.look()
    began = api.condition["lastTransitionTime"] = ago(hours=1)
    api.condition["lastHeartbeatTime"] = ago(minutes=4)
    watch.look()
    assert len(api.changes) == 1
    api.condition["lastHeartbeatTime"] = ago(minutes=6)
    watch.look()
    assert len(api.changes) == 2
    assert api.condition["lastHeartbeatTime"] > ago(minutes=1)
    assert api.condition["lastTransitionTime"] == began


def test_a_node_that_joined_again_is_told_and_taken_out_again(watch: Watch, api: Api) -> None:
    watch.cards(lost=(0,))
    watch.look()
    api.join()
    watch.look()
    assert (api.cordoned, api.condition["status"], len(api.events)) == (True, "False", 2)


def test_a_driver_that_hangs_is_told_in_time(watch: Watch, api: Api) -> None:
    watch.cards(hung=True)
    watch.waits(1)
    began = time.monotonic()
    assert f"<1>{HANGS} 1 s" in watch.look()
    assert time.monotonic() - began < 20
    assert (watch.found, api.cordoned, api.condition["message"]) == ([f"{HANGS} 1 s"], True, f"{HANGS} 1 s")
    watch.cards()
    watch.waits(20)
    watch.look()
    assert watch.found == []


def test_nobody_asks_again_while_one_still_waits(watch: Watch, api: Api) -> None:
    """What a driver keeps from dying is played by a process that nobody kills."""
    watch.look()
    waiting = subprocess.Popen(["sleep", "60"])
    began = Path(f"/proc/{waiting.pid}/stat").read_text().split()[21]
    (watch.run / "stuck").write_text(f"{waiting.pid} {began}")
    asked = watch.asked
    watch.look()
    watch.look()
    assert (watch.asked, watch.found, len(api.events)) == (asked, [f"{HANGS} 20 s"], 1)
    (watch.run / "stuck").write_text(f"{waiting.pid} 1")
    watch.look()
    assert watch.found == [], "another process has that number now"
    (watch.run / "stuck").write_text(f"{waiting.pid} {began}")
    waiting.kill()
    waiting.wait()
    watch.look()
    assert watch.found == []


def test_what_cannot_be_asked_is_no_card_that_is_lost(watch: Watch, api: Api) -> None:
    """Such as an environment that is half there: the unit fails, and the node stays."""
    (watch.run.parent / "pynvml.py").write_text("import nothing")
    assert "the cards could not be asked" in watch.look(1)
    assert not api.cordoned
