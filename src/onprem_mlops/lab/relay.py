"""Carries a node's packets with delay and loss, where the kernel has no netem. A program of its own: stdlib only.

    python relay.py PORT BRIDGE TAP DELAY_MS LOSS_PERCENT LOCK_FILE

Takes PORT (this machine's end of the node's link) off BRIDGE and puts a tap in its place. What the bridge sends to
the node is late or lost; what the node sends passes at once, as with netem on PORT. Ends when PORT vanishes (the
node rebooted) or on SIGTERM; the caller puts PORT back on the bridge.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from types import FrameType
from typing import NoReturn

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_VNET_HDR, _PACKET_MR_PROMISC = 263, 1, 15, 1
_ETH_P_ALL = 0x0003
_LARGEST = 70_000
"""Bytes of the largest frame: veth hands over 64 KiB segments, described by a header that the tap understands."""


def main(port: str, bridge: str, tap: str, delay_ms: float, loss_percent: float, lock: str) -> None:
    """Relay until the port vanishes."""
    with open(lock, "a") as file:  # noqa: PTH123 - pathlib costs this small process memory and start-up time
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        tap_fd = _open_tap(tap)
        node = _open_port(port)
        _ip("link", "set", port, "nomaster")
        _ip("link", "set", tap, "master", bridge, "up")
        with contextlib.suppress(OSError):
            _relay(tap_fd, node, delay_ms / 1000, loss_percent / 100)


def _open_tap(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
    fcntl.ioctl(descriptor, _TUNSETIFF, request)
    return descriptor


def _open_port(name: str) -> socket.socket:
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    port.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    port.bind((name, _ETH_P_ALL))
    membership = struct.pack("iHH8s", socket.if_nametoindex(name), _PACKET_MR_PROMISC, 0, b"")
    port.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, membership)
    port.setblocking(False)
    return port


def _relay(tap: int, node: socket.socket, delay: float, loss: float) -> None:
    waiting: list[tuple[float, int, bytes]] = []
    count = 0
    while True:
        wait = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        ready, _, _ = select.select([tap, node.fileno()], [], [], wait)
        if node.fileno() in ready:
            _from_node(node, tap)
        if tap in ready:
            frame = os.read(tap, _LARGEST)
            count += 1
            if random.random() >= loss:
                heapq.heappush(waiting, (time.monotonic() + delay, count, frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _send(node, heapq.heappop(waiting)[2])


def _from_node(node: socket.socket, tap: int) -> None:
    frame, address = node.recvfrom(_LARGEST)
    # A packet socket also hears what it sends.
    if address[2] != socket.PACKET_OUTGOING:
        with contextlib.suppress(BlockingIOError):
            os.write(tap, frame)


def _send(node: socket.socket, frame: bytes) -> None:
    # A full queue loses the frame, as a network does.
    with contextlib.suppress(BlockingIOError):
        node.send(frame)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]), float(sys.argv[5]), sys.argv[6])
