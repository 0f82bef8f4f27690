"""A switch whose cables are long: what comes in at one port leaves at another so many milliseconds later.

A program of its own, `python support_far.py MILLISECONDS PORT…`, for kernels that lack netem.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence

_SOL_PACKET, _VNET_HDR, _IGNORE_OUTGOING = 263, 15, 23  # Linux: large segments stay whole; no frame is heard twice
_ETH_P_ALL = 3
_HEADER = 10  # bytes before the frame that say how it is to be cut
_LARGEST = 70000
_ROOM = 64 << 20  # bytes that may wait to be read


def switch(seconds: float, ports: Sequence[str]) -> None:
    """Hands every frame on so much later, for ever, to the port where its destination was last heard, else to all."""
    sockets = [_opened(port) for port in ports]
    port_of: dict[bytes, int] = {}
    waiting: deque[tuple[float, bytes, list[int]]] = deque()
    while True:
        patience = None if not waiting else max(0.0, waiting[0][0] - time.monotonic())
        for ready in select.select(sockets, [], [], patience)[0]:
            came, frame = sockets.index(ready), ready.recv(_LARGEST)
            to, sender = frame[_HEADER : _HEADER + 6], frame[_HEADER + 6 : _HEADER + 12]
            port_of[sender] = came
            others = [port for port in range(len(ports)) if port != came]
            waiting.append((time.monotonic() + seconds, frame, [port_of[to]] if to in port_of else others))
        while waiting and waiting[0][0] <= time.monotonic():
            _, frame, leaving = waiting.popleft()
            for port in leaving:
                sockets[port].send(frame)


def _opened(port: str) -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    opened.setsockopt(_SOL_PACKET, _VNET_HDR, 1)
    opened.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUFFORCE if hasattr(socket, "SO_RCVBUFFORCE") else 33, _ROOM)
    opened.bind((port, 0))
    return opened


if __name__ == "__main__":
    switch(float(sys.argv[1]) / 1e3, sys.argv[2:])
