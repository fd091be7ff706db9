"""Ports as the network sees them: what listens on a node, and what answers from where.

The probes on nodes are Perl, because ``perl-base`` is the one interpreter that every Debian system has.
"""

from __future__ import annotations

import contextlib
import errno
import re
import selectors
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

from onprem_mlops.verify.backend import NodeHost

Answer = Literal["open", "refused", "silent"]
"""``silent``: no answer at all, as a firewall that drops gives."""

Target = tuple[str, int]
"""Address and port."""

SCAN_SECONDS = 1.5
"""How long a port may keep silent before it counts as dropped; a node of the same network answers in milliseconds."""

BATCH = 400
"""Connections tried at once: well below the 1024 files that a process may have open by default."""

_USERS = re.compile(r'users:\(\("([^"]+)",pid=(\d+)')


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket on which a process waits for others."""

    protocol: Literal["tcp", "udp"]
    address: str
    port: int
    process: str
    pid: int | None

    @property
    def loopback(self) -> bool:
        """Whether only the node itself can reach it."""
        return self.address != "*" and ip_address(self.address).is_loopback

    def __str__(self) -> str:
        return f"{self.protocol} {self.address}:{self.port} ({self.process or 'kernel'})"


def listeners(node: NodeHost) -> list[Listener]:
    """Every listening TCP socket and every unconnected UDP socket of a node."""
    return [_listener(line) for line in node.lines("ss -H -tulnp") if line.startswith(("tcp", "udp"))]


def _listener(line: str) -> Listener:
    protocol, _, _, _, local, *rest = line.split()
    address, _, port = local.rpartition(":")
    users = _USERS.search(" ".join(rest))
    # `ss` writes 127.0.0.53%lo, [::ffff:127.0.0.1] and *.
    plain = address.partition("%")[0].strip("[]").removeprefix("::ffff:")
    name, pid = (users[1], int(users[2])) if users else ("", None)
    return Listener("udp" if protocol == "udp" else "tcp", plain, int(port), name, pid)


_SCAN = r"""
use strict; use Socket; use Fcntl; use Errno;
my $left = shift; my %wait;
while (<STDIN>) {
  my ($a, $p) = split; next unless defined $p;
  socket(my $s, PF_INET, SOCK_STREAM, 0) or die "socket: $!"; fcntl($s, F_SETFL, O_NONBLOCK);
  if (connect($s, sockaddr_in($p, inet_aton($a)))) { print "$a $p open\n"; next }
  if ($!{EINPROGRESS}) { $wait{fileno $s} = [$s, $a, $p]; next }
  print "$a $p ", ($!{ECONNREFUSED} ? "refused" : "silent"), "\n";
}
while (%wait && $left > 0) {
  my $w = ""; vec($w, $_, 1) = 1 for keys %wait;
  (my $n, $left) = select(undef, $w, undef, $left); last unless $n > 0;
  for (grep { vec($w, $_, 1) } keys %wait) {
    my ($s, $a, $p) = @{delete $wait{$_}};
    $! = unpack("i", getsockopt($s, SOL_SOCKET, SO_ERROR));
    print "$a $p ", ($! == 0 ? "open" : $!{ECONNREFUSED} ? "refused" : "silent"), "\n";
  }
}
print "$_->[1] $_->[2] silent\n" for values %wait;
"""

_LISTEN = r"""
use strict; use Socket; $SIG{ALRM} = sub { exit }; alarm shift;
socket(my $t, PF_INET, SOCK_STREAM, 0); bind($t, sockaddr_in(0, INADDR_ANY)); listen($t, 128) or die "listen: $!";
my ($port) = sockaddr_in(getsockname $t);
socket(my $u, PF_INET, SOCK_DGRAM, 0); bind($u, sockaddr_in($port, INADDR_ANY)) or die "bind: $!";
$| = 1; print "$port $$\n"; open STDOUT, ">", "/dev/null";
while (my $peer = recv($u, my $said, 64, 0)) { send($u, $said, 0, $peer) }
"""

# Connected, so that it is nobody's listener in the eyes of a check that lists this node's sockets meanwhile.
_SAY = r"""
use strict; use Socket; my ($a, $p, $left) = @ARGV;
socket(my $u, PF_INET, SOCK_DGRAM, 0); connect($u, sockaddr_in($p, inet_aton($a))); send($u, "hello", 0);
my $r = ""; vec($r, fileno $u, 1) = 1;
my $heard = ""; recv($u, $heard, 64, 0) if select($r, undef, undef, $left) > 0;
print $heard eq "hello" ? "open" : "silent";
"""


def scan_from(node: NodeHost, targets: Iterable[Target]) -> dict[Target, Answer]:
    """Try to connect from a node to every target, many at once."""
    answers: dict[Target, Answer] = {}
    for some in _batches(list(targets)):
        wanted = "".join(f"{address} {port}\n" for address, port in some)
        found = node.feed(f"perl -e {_quoted(_SCAN)} {SCAN_SECONDS}", wanted)
        assert found.rc == 0, f"{node.name}: the port scan failed: {found.stderr.strip()}"
        for line in found.stdout.splitlines():
            address, port, answer = line.split()
            answers[address, int(port)] = _word(answer)
    return answers


def _batches(targets: Sequence[Target]) -> Iterator[Sequence[Target]]:
    return (targets[at : at + BATCH] for at in range(0, len(targets), BATCH))


@contextlib.contextmanager
def listener_on(node: NodeHost, seconds: int = 40) -> Iterator[int]:
    """A TCP and UDP listener on a free port of a node, on all its addresses. Ends by itself after ``seconds``."""
    script = f"out=$(mktemp); setsid perl -e {_quoted(_LISTEN)} {seconds} </dev/null >$out 2>&1 & "
    wait = 'for _ in 1 2 3 4 5 6 7 8 9 10; do sleep 0.1; [ -s "$out" ] && break; done; cat "$out"; rm -f "$out"'
    said = node.check_output(script + wait).split()
    assert len(said) == 2 and said[0].isdigit(), f"{node.name}: no listener for the test: {' '.join(said)}"
    try:
        yield int(said[0])
    finally:
        node.run("kill %s", said[1])


def udp_answer_from(node: NodeHost, target: Target) -> Answer:
    """Send a datagram from a node to a listener of ``listener_on`` and say whether it answers."""
    address, port = target
    return _word(node.check_output(f"perl -e {_quoted(_SAY)} {address} {port} {SCAN_SECONDS}"))


def _word(said: str) -> Answer:
    words: dict[str, Answer] = {"open": "open", "refused": "refused", "silent": "silent"}
    assert said in words, f"a probe said {said[:200]!r}"
    return words[said]


def _quoted(script: str) -> str:
    return "'" + script.replace("'", "'\\''") + "'"


def scan(targets: Sequence[Target], seconds: float = SCAN_SECONDS) -> dict[Target, Answer]:
    """Try to connect from this machine to every target, many at once."""
    answers: dict[Target, Answer] = {}
    for some in _batches(targets):
        answers |= _scan(some, seconds)
    return answers


def _scan(targets: Sequence[Target], seconds: float) -> dict[Target, Answer]:
    answers: dict[Target, Answer] = {}
    with selectors.DefaultSelector() as selector:
        for target in targets:
            if answer := _begin(selector, target):
                answers[target] = answer
        deadline = time.monotonic() + seconds
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                answers[key.data] = _answer(key.fileobj)
                _drop(selector, key.fileobj)
        for key in list(selector.get_map().values()):
            answers[key.data] = "silent"
            _drop(selector, key.fileobj)
    return answers


def _begin(selector: selectors.BaseSelector, target: Target) -> Answer | None:
    attempt = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    code = attempt.connect_ex(target)
    if code == errno.EINPROGRESS:
        selector.register(attempt, selectors.EVENT_WRITE, target)
        return None
    attempt.close()
    return _meaning(code)


def _answer(attempt: object) -> Answer:
    assert isinstance(attempt, socket.socket)
    return _meaning(attempt.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))


def _meaning(code: int) -> Answer:
    if code == 0:
        return "open"
    return "refused" if code == errno.ECONNREFUSED else "silent"


def _drop(selector: selectors.BaseSelector, attempt: object) -> None:
    assert isinstance(attempt, socket.socket)
    selector.unregister(attempt)
    attempt.close()
