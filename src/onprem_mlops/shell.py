"""One framed, long-lived shell over a pinned SSH connection.

An SSH exec channel costs a node about 15 ms of processor time, a command in a shell that is already there about two.
So each node keeps one `sh` and every command is framed with markers that no output can contain: a random word per
command on both streams, the exit status beside it. Nothing here is retried: a broken channel is an error of the
command that met it.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import secrets
import select
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import paramiko
from paramiko.ssh_exception import NoValidConnectionsError

from onprem_mlops.errors import MlopsError, RequestError

# A broken connection reaches people as Unreachable; paramiko's own thread would print its traceback beside it.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False

CONNECT_SECONDS = 10.0
"""How long a node may take to answer before it counts as unreachable."""

REFUSED_SECONDS = 3.0
"""How long a node may refuse connections before it counts as unreachable: its SSH server restarts within one."""

KEEPALIVE_SECONDS = 15


class Unreachable(MlopsError):
    """No SSH connection to the node could be made, or the one there was broke."""


class CommandTimeout(MlopsError):
    """A command outlasted its limit; its process group on the node was killed."""


class HostKeyMismatch(RequestError):
    """The node showed another host key than the one pinned in the site file."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and as whom a node is reached. `host_key` is one `ssh-ed25519 AAAA…` line, `key` a private key file."""

    name: str
    address: str
    port: int
    user: str
    key: Path
    host_key: str
    sudo: bool


@dataclass(frozen=True, slots=True)
class Completed:
    """What a command gave: exit status, and both streams as bytes, exactly as written."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text; bytes that are not UTF-8 are shown as replacement characters."""
        return self.stdout.decode(errors="replace")

    @property
    def error_text(self) -> str:
        """Standard error as text."""
        return self.stderr.decode(errors="replace")


BROKEN = (OSError, EOFError, paramiko.SSHException)
"""What a connection that breaks raises, wherever it is met."""


class Connection:
    """One SSH connection to one node. Commands run as root if the endpoint says sudo, else as its user."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._client: paramiko.SSHClient | None = None
        self._shell: _FramedShell | None = None
        self._held = self._expected = ""

    def connect(self) -> None:
        """Connect and check the pinned host key.

        Raises HostKeyMismatch if the node shows another key, Unreachable for everything else.
        """
        client = paramiko.SSHClient()
        algorithm, _, rest = self.endpoint.host_key.partition(" ")
        key = paramiko.PKey.from_type_string(algorithm, base64.b64decode(rest.split()[0]))
        address, port = self.endpoint.address, self.endpoint.port
        client.get_host_keys().add(address if port == 22 else f"[{address}]:{port}", algorithm, key)
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        try:
            self._dial(client)
        except paramiko.BadHostKeyException as error:
            raise self._mismatch(error.key) from None
        except paramiko.AuthenticationException:
            raise Unreachable(
                f"{self._who}: the node refused {self.endpoint.user}'s key {self.endpoint.key}",
                "Check ssh.user and ssh.key in site.yaml, and the node's authorized_keys.",
            ) from None
        except BROKEN as error:
            if "not found in known_hosts" in str(error):
                raise self._mismatch(None) from None
            raise Unreachable(
                f"{self._who}: no SSH connection: {_reason(error)}",
                "Check that the node is up and that nothing between keeps port "
                f"{port} from this machine; then run the command again.",
            ) from None
        transport = client.get_transport()
        if transport is not None:
            transport.set_keepalive(KEEPALIVE_SECONDS)
        self._client = client

    def _dial(self, client: paramiko.SSHClient) -> None:
        """Connect; a node that refuses is asked again for some seconds, since its SSH server may be restarting."""
        patience = time.monotonic() + REFUSED_SECONDS
        while True:
            try:
                client.connect(
                    self.endpoint.address,
                    port=self.endpoint.port,
                    username=self.endpoint.user,
                    key_filename=str(self.endpoint.key),
                    allow_agent=False,
                    look_for_keys=False,
                    timeout=CONNECT_SECONDS,
                    banner_timeout=CONNECT_SECONDS * 2,
                    auth_timeout=CONNECT_SECONDS * 2,
                    transport_factory=_transport,
                )
                return
            except NoValidConnectionsError as error:
                refused = all(isinstance(one, ConnectionRefusedError) for one in error.errors.values())
                if not refused or time.monotonic() > patience:
                    raise
            time.sleep(0.2)

    @property
    def _who(self) -> str:
        return f"{self.endpoint.name} ({self.endpoint.address})"

    def _mismatch(self, shown: paramiko.PKey | None) -> HostKeyMismatch:
        what = f"{shown.get_name()} {shown.get_base64()}" if shown else "a key of another kind"
        return HostKeyMismatch(
            f"{self._who}: the node's host key is not the pinned one; refused. It showed: {what}",
            "If the node was reinstalled, compare the key on its console and put it in site.yaml; "
            "if not, somebody may be between you and the node.",
        )

    @property
    def connected(self) -> bool:
        """Whether the transport is still up, as far as this side knows."""
        transport = self._client.get_transport() if self._client else None
        return transport is not None and transport.is_active()

    def run(self, command: str, *, stdin: str | None = None, timeout: float | None = None) -> Completed:
        """Run a shell command and return what it gave; a non-zero status is not an error here.

        `stdin` is text that reaches the command's standard input with a newline at its end and never its arguments.
        `timeout` is in seconds. Raises CommandTimeout or Unreachable.
        """
        shell = self._opened()
        try:
            return shell.run(command, stdin, timeout)
        except TimeoutError:
            self._kill_group(shell.process_group)
            self._shell = None
            raise CommandTimeout(f"{self._who}: no end after {timeout:.0f} s: {command[:200]}") from None
        except BROKEN as error:
            self._shell = None
            raise self._broke(error) from None

    def hold(self, script: str, *, expect: str) -> Completed:
        """Run a script in the long-lived shell itself, so that what it opens (a lock) lasts as long as the shell.

        Once it has said `expect`, it is run again in every shell that has to replace a lost one; Unreachable if it
        then says something else.
        """
        shell = self._opened()
        try:
            done = shell.run(script, None, 30, inside=True)
        except BROKEN as error:
            self._shell = None
            raise self._broke(error) from None
        if done.text.strip() == expect:
            self._held, self._expected = script, expect
        return done

    def _opened(self) -> _FramedShell:
        if self._shell is None:
            try:
                shell = _FramedShell(self._session(), self.endpoint)
                said = shell.run(self._held, None, 30, inside=True).text.strip() if self._held else ""
            except BROKEN as error:
                raise self._broke(error) from None
            if said != self._expected:
                raise Unreachable(
                    f"{self._who}: the connection broke and somebody else took the node's lock meanwhile",
                    "Wait for that run to end, then run the command again.",
                )
            self._shell = shell
        return self._shell

    def _broke(self, error: Exception) -> Unreachable:
        return Unreachable(
            f"{self._who}: the connection broke: {_reason(error)}",
            "The node may have rebooted or lost its network. Run the command again when it is back.",
        )

    def stream(self, command: str, source: BinaryIO | Iterator[bytes], *, timeout: float = 3600) -> Completed:
        """Run a command with bytes streamed to its standard input over a channel of its own.

        For what is too large for the framed shell. `timeout` (seconds) is for each wait on the node.
        """
        session = self._session()
        try:
            session.settimeout(timeout)
            session.exec_command(self._privileged(command))
            for block in _blocks(source):
                session.sendall(block)
            session.shutdown_write()
            out, err = session.makefile("rb").read(), session.makefile_stderr("rb").read()
            return Completed(session.recv_exit_status(), out, err)
        except BROKEN as error:
            raise self._broke(error) from None
        finally:
            session.close()

    def close(self) -> None:
        """Close the connection; the shell on the node ends with it."""
        self._shell = None
        if self._client:
            self._client.close()
            self._client = None

    def _privileged(self, command: str) -> str:
        return f"sudo -n -- sh -c {shlex.quote(command)}" if self.endpoint.sudo else command

    def _session(self) -> paramiko.Channel:
        if self._client is None:
            self.connect()
        transport = self._client.get_transport() if self._client else None
        if transport is None or not transport.is_active():
            raise Unreachable(f"{self._who}: the connection is gone")
        try:
            return transport.open_session(timeout=CONNECT_SECONDS)
        except BROKEN as error:
            raise self._broke(error) from None

    def _kill_group(self, group: int) -> None:
        # The shell may be deaf, so its group is killed through a channel of its own.
        with contextlib.suppress(MlopsError, *BROKEN):
            session = self._session()
            session.settimeout(CONNECT_SECONDS)
            session.exec_command(self._privileged(f"kill -KILL -- -{group}"))
            session.recv_exit_status()
            session.close()


def _reason(error: Exception) -> str:
    """Why there is no connection. paramiko sums up what each address said and leaves that itself out."""
    said = list(error.errors.values()) if isinstance(error, NoValidConnectionsError) else [error]
    return "; ".join(str(one) or type(one).__name__ for one in said)


def _transport(*arguments: Any, **options: Any) -> paramiko.Transport:
    """A transport that prefers the cipher that costs both ends least: two thirds of the time for a gigabyte."""
    transport = paramiko.Transport(*arguments, **options)
    security = transport.get_security_options()
    fast = "aes128-gcm@openssh.com"
    security.ciphers = (fast, *(one for one in security.ciphers if one != fast))
    return transport


class _FramedShell:
    """The `sh` on the node that commands are fed to, one at a time."""

    def __init__(self, channel: paramiko.Channel, endpoint: Endpoint) -> None:
        self._channel = channel
        channel.exec_command("exec sudo -n -- sh -s" if endpoint.sudo else "exec sh -s")
        first = self.run("read -r _ _ _ _ group _ </proc/$$/stat && echo $group", None, 30, inside=True)
        if first.status != 0:
            raise Unreachable(
                f"{endpoint.name}: no shell as {'root through sudo' if endpoint.sudo else endpoint.user}: "
                f"{first.error_text.strip()}",
                f"The SSH user {endpoint.user} needs sudo without a password (NOPASSWD), or ssh.sudo: false as root.",
            )
        self.process_group = int(first.text)

    def run(self, command: str, stdin: str | None, timeout: float | None, *, inside: bool = False) -> Completed:
        """Feed one command; `inside` runs it in the shell itself instead of a subshell."""
        word = secrets.token_hex(12)
        self._channel.sendall(_frame(command, stdin, word, inside=inside).encode())
        return self._collect(word.encode(), None if timeout is None else time.monotonic() + timeout)

    def _collect(self, word: bytes, deadline: float | None) -> Completed:
        begin, end = b"<" + word + b">\n", b"\n>" + word + b" "
        out, err = bytearray(), bytearray()
        while not (_ended(out, end) and _ended(err, end)):
            self._wait(deadline, out, err)
            while self._channel.recv_ready():
                out += self._channel.recv(1 << 16)
            while self._channel.recv_stderr_ready():
                err += self._channel.recv_stderr(1 << 16)
        body, _, tail = bytes(out).partition(begin)[2].rpartition(end)
        errors = bytes(err).partition(begin)[2].rpartition(end)[0]
        return Completed(int(tail), body, errors)

    def _wait(self, deadline: float | None, out: bytearray, err: bytearray) -> None:
        if self._channel.recv_ready() or self._channel.recv_stderr_ready():
            return
        if self._channel.closed or self._channel.exit_status_ready():
            said = bytes(err or out).decode(errors="replace").strip()
            raise EOFError(f"the shell on the node ended{': ' + said[-300:] if said else ''}")
        left = 1.0 if deadline is None else min(1.0, deadline - time.monotonic())
        if left <= 0:
            raise TimeoutError
        # poll, not select: with some hundred nodes file numbers pass select's limit of 1024.
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        poll.poll(left * 1000)


def _frame(command: str, stdin: str | None, word: str, *, inside: bool) -> str:
    """The lines that run one command with begin and end markers on both streams.

    `eval` of a quoted string, so that a syntax error ends the subshell and not the frame. Descriptor 9 is the run's
    lock (see Connection.hold): a command must not keep it.
    """
    quoted = shlex.quote(command)
    run = f"eval {quoted}" if inside else f"( exec 9>&-; eval {quoted} )"
    source = "</dev/null" if stdin is None else f"<<'{word}'\n{stdin.removesuffix(chr(10))}\n{word}"
    return (
        f"printf '<%s>\\n' {word}; printf '<%s>\\n' {word} >&2\n"
        f"{{ {run}; }} {source}\n"
        f"_s=$?; printf '\\n>%s %d\\n' {word} $_s; printf '\\n>%s %d\\n' {word} $_s >&2\n"
    )


def _ended(stream: bytearray, end: bytes) -> bool:
    at = stream.rfind(end, max(0, len(stream) - len(end) - 8))
    return at >= 0 and stream.endswith(b"\n") and len(stream) > at + len(end)


def _blocks(source: BinaryIO | Iterator[bytes]) -> Iterator[bytes]:
    if isinstance(source, Iterator) and not hasattr(source, "read"):
        yield from source
        return
    while block := source.read(1 << 18):
        yield block
