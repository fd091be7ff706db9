"""A lean client of the Kubernetes API.

The ``kubernetes`` package takes about a second and 30 MB to import in every worker; a verification needs GET, POST,
DELETE and exec, which are an HTTPS connection and one WebSocket.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import http.client
import json
import secrets
import ssl
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import websocket
import yaml

from onprem_mlops.site import Site
from onprem_mlops.verify.controller import AddressedHTTPS, Response, exchange
from onprem_mlops.verify.outcomes import NotChecked

KUBECONFIG = "kubeconfig"
"""Name of the administrator's kubeconfig in the site's state folder."""

NAMESPACES = "/api/v1/namespaces"
VERIFY_LABEL = "onprem-mlops.local/verify"
PLATFORM_LABEL = "onprem-mlops.local/platform"
"""Of namespaces with what the platform itself runs: rules about the work of teams do not hold there."""

LEFTOVER_SECONDS = 900
"""Age at which a namespace of ours is left over: no verification takes that long."""

_STDOUT, _STDERR, _STATUS = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command in a pod gave."""

    status: int
    stdout: str
    stderr: str


class Cluster:
    """The API server as the administrator sees it."""

    def __init__(self, server: str, name: str, site_names: Mapping[str, Any], trusted: str, chain: str) -> None:
        at = urlsplit(server)
        assert at.hostname
        self.server = server
        self._name, self._port = name or at.hostname, at.port or 443
        self._address = str(site_names.get(at.hostname, (at.hostname,))[0])
        self._trusted = trusted
        self._context = ssl.create_default_context(cadata=trusted)
        _load_chain(self._context, chain)
        self._connection: AddressedHTTPS | None = None

    @classmethod
    def of_site(cls, site: Site) -> Cluster:
        """The cluster of a site. NotChecked if its kubeconfig was not fetched yet or is damaged."""
        path = site.state / KUBECONFIG
        try:
            server, name, authority, chain = _credentials(path)
        except FileNotFoundError:
            raise NotChecked(f"{path} does not exist", "`./mlops deploy infrastructure` fetches it.") from None
        except (KeyError, ValueError, TypeError, StopIteration, yaml.YAMLError) as error:
            raise NotChecked(
                f"{path} is not a kubeconfig with a client certificate ({type(error).__name__})",
                "Remove it; `./mlops deploy infrastructure` fetches it again.",
            ) from None
        return cls(server, name, site.names, authority, chain)

    def require(self, others: Iterable[str] = ()) -> None:
        """NotChecked if the API does not answer at its endpoint, nor at any of the other addresses.

        Where the endpoint is down, a control plane's own address serves: what else is wrong must still be seen.
        """
        problem = self._why_silent()
        for address in others if problem else ():
            endpoint, self._address = self._address, address
            if not self._why_silent():
                return
            self._address = endpoint
        if problem:
            raise NotChecked(problem)

    def _why_silent(self) -> str:
        self._connection = None
        try:
            answer = self.request("GET", "/livez")
        except OSError as error:
            return f"the Kubernetes API at {self.server} does not answer: {error}"
        if answer.status == 200:
            return ""
        return f"the Kubernetes API at {self.server} is not live: HTTP {answer.status} {answer.text[:200]}"

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = "application/json",
    ) -> Response:
        """One request as the administrator. OSError if the server cannot be reached."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Accept": "application/json", "Content-Type": content_type}
        if self._connection is None:
            self._connection = AddressedHTTPS(self._name, self._port, (self._address,), self._context)
        try:
            return exchange(self._connection, method, path, headers, data)
        except http.client.HTTPException as error:
            self._connection = None
            raise ConnectionError(f"{type(error).__name__}: {error}") from None
        except OSError:
            self._connection = None
            raise

    def request_as(
        self, method: str, path: str, *, token: str | None = None, at: tuple[str, int] | None = None
    ) -> Response:
        """One request without the administrator's certificate: with a token, or as nobody.

        ``at`` is the address and port to ask instead of the kubeconfig's, such as one control plane's own.
        """
        headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        context = ssl.create_default_context(cadata=self._trusted)
        address, port = at or (self._address, self._port)
        connection = AddressedHTTPS(self._name, port, (address,), context)
        try:
            return exchange(connection, method, path, headers, None)
        finally:
            connection.close()

    def at(self, address: str, port: int) -> Cluster:
        """The same administrator, asking one API server by its own address."""
        other = copy.copy(self)
        other.server = f"https://{address}:{port}"
        other._address, other._port, other._connection = address, port, None
        return other

    def get(self, path: str) -> Any:
        """An object or a list. AssertionError if there is none."""
        answer = self.request("GET", path)
        assert answer.status == 200, f"GET {path}: HTTP {answer.status}: {answer.text[:300]}"
        return answer.json

    def items(self, path: str) -> list[dict[str, Any]]:
        """The items of a list."""
        listed: list[dict[str, Any]] = self.get(path)["items"]
        return listed

    def namespaces(self) -> list[str]:
        """Names of the namespaces, without those of checks, which come and go while others look."""
        metadata = [one["metadata"] for one in self.items(NAMESPACES)]
        return [
            one["name"]
            for one in metadata
            if "deletionTimestamp" not in one and VERIFY_LABEL not in one.get("labels", {})
        ]

    def create(self, path: str, manifest: Mapping[str, Any]) -> Any:
        """Create an object. AssertionError if it is refused."""
        answer = self.request("POST", path, manifest)
        assert answer.status in (200, 201, 202), f"POST {path}: HTTP {answer.status}: {answer.text[:500]}"
        return answer.json

    def delete(self, path: str, *, grace_seconds: int = 0) -> None:
        """Delete an object; one that is gone already is no error."""
        answer = self.request("DELETE", path, {"gracePeriodSeconds": grace_seconds, "propagationPolicy": "Background"})
        assert answer.status in (200, 202, 404), f"DELETE {path}: HTTP {answer.status}: {answer.text[:300]}"

    def exec(self, namespace: str, pod: str, *command: str, seconds: float = 15) -> Ran:
        """Run a command in a pod's only container."""
        query = urlencode([("stdout", "1"), ("stderr", "1"), *(("command", word) for word in command)])
        url = f"wss://{self._name}:{self._port}/api/v1/namespaces/{namespace}/pods/{pod}/exec?{query}"
        plain = AddressedHTTPS(self._name, self._port, (self._address,), self._context)
        with contextlib.closing(plain.tls_socket()) as connected:
            try:
                channel = websocket.create_connection(
                    url, timeout=seconds, socket=connected, subprotocols=["v5.channel.k8s.io"]
                )
            except websocket.WebSocketBadStatusException as refused:
                raise AssertionError(
                    f"no command can be run in pod {namespace}/{pod}: HTTP {refused.status_code}: "
                    f"{_refusal(refused.resp_body)}{self._state_of(namespace, pod)}"
                ) from None
            return _ran(channel, time.monotonic() + seconds)

    def _state_of(self, namespace: str, pod: str) -> str:
        """What the cluster says of a pod's containers."""
        answer = self.request("GET", f"{NAMESPACES}/{namespace}/pods/{pod}")
        if answer.status != 200:
            return f"; the API server says HTTP {answer.status} of it"
        status = answer.json.get("status", {})
        states = [state for one in status.get("containerStatuses", ()) for state in one.get("state", {}).items()]
        said = [f"{kind} {about.get('reason', '')} {about.get('message', '')}".strip() for kind, about in states]
        return f"; it is {status.get('phase', 'of unknown phase')}: {'; '.join(said) or 'no container'}"


def until(condition: Callable[[], bool], seconds: float, every: float = 0.1) -> bool:
    """Wait until something holds. False if it does not within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


@contextlib.contextmanager
def namespace(cluster: Cluster, purpose: str) -> Iterator[str]:
    """A namespace of its own for the time of a check. What interrupted runs left behind is removed on the way."""
    _remove_leftovers(cluster)
    name = f"verify-{purpose}-{secrets.token_hex(3)}"
    metadata = {"name": name, "labels": {VERIFY_LABEL: "true", PLATFORM_LABEL: "true"}}
    cluster.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    try:
        yield name
    finally:
        cluster.delete(f"{NAMESPACES}/{name}")


def _remove_leftovers(cluster: Cluster) -> None:
    oldest = datetime.now(UTC) - timedelta(seconds=LEFTOVER_SECONDS)
    for one in cluster.items(f"{NAMESPACES}?labelSelector={VERIFY_LABEL}"):
        if datetime.fromisoformat(one["metadata"]["creationTimestamp"]) < oldest:
            cluster.delete(f"{NAMESPACES}/{one['metadata']['name']}")


def _ran(channel: Any, deadline: float) -> Ran:
    streams = {_STDOUT: bytearray(), _STDERR: bytearray(), _STATUS: bytearray()}
    try:
        while time.monotonic() < deadline:
            frame = channel.recv()
            data = frame.encode() if isinstance(frame, str) else frame
            if not data:
                break
            streams.setdefault(data[0], bytearray()).extend(data[1:])
            if data[0] == _STATUS:
                break
    except websocket.WebSocketTimeoutException:
        raise AssertionError("a command in a pod did not end in time") from None
    except websocket.WebSocketConnectionClosedException:
        pass
    finally:
        channel.close()
    return Ran(_exit_status(bytes(streams[_STATUS])), *(bytes(streams[n]).decode(errors="replace") for n in (1, 2)))


def _refusal(body: bytes | str | None) -> str:
    """What the API server says why, out of its answer."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else body or ""
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:300]


def _exit_status(said: bytes) -> int:
    status: dict[str, Any] = json.loads(said) if said else {"message": "the connection closed without a status"}
    if status.get("status") == "Success":
        return 0
    for cause in status.get("details", {}).get("causes", ()):
        if cause.get("reason") == "ExitCode":
            return int(cause["message"])
    raise AssertionError(f"a command in a pod could not be run: {status.get('message')}")


def _credentials(path: Path) -> tuple[str, str, str, str]:
    """Server, its name in TLS, authority (PEM), and certificate with key (PEM) of the current context."""
    config = yaml.safe_load(path.read_text())
    context = _named(config["contexts"], config["current-context"])["context"]
    cluster = _named(config["clusters"], context["cluster"])["cluster"]
    user = _named(config["users"], context["user"])["user"]
    authority, certificate, key = (
        base64.b64decode(part).decode()
        for part in (
            cluster["certificate-authority-data"],
            user["client-certificate-data"],
            user["client-key-data"],
        )
    )
    return cluster["server"], cluster.get("tls-server-name", ""), authority, f"{certificate}\n{key}"


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(entry for entry in entries if entry["name"] == name)


def _load_chain(context: ssl.SSLContext, chain: str) -> None:
    # ssl reads files only. A temporary file is 0600 from its first moment and gone after the next line.
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(chain)
        file.flush()
        context.load_cert_chain(file.name)
