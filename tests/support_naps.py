"""A stage that sleeps in place of computing, joined to its neighbours by real channels: what a schedule costs on hosts
that have a core each, seen on a machine that has fewer.

A program of its own: `python -m tests.support_naps ASKED`, where that is JSON; the last stage prints the seconds at
which its steps ended.
"""

from __future__ import annotations

import json
import os
import sys
import time

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, though not re-exported for mypy

from pipeline.kind import Kind
from pipeline.telemetry.clock import Clock
from pipeline.transport.base import Edge
from pipeline.transport.edges import EdgeGroups
from pipeline.transport.message import Message, message_bytes

PORT = 29511


def run(*, rank: int, naps: list[tuple[float, float]], depth: int, kib: int, steps: int, addresses: list[str]) -> None:
    """One stage's part.

    Args:
        naps: seconds of each stage before and after it sends.
        kib: size of a message.
        addresses: of all stages' hosts.
    """
    count, (before, after) = len(naps), naps[rank]
    message = Message(Kind.TRAIN, tensors={"x": torch.zeros(kib * 256)})
    payload = message_bytes(message)
    edges = tuple(
        Edge(name=f"stage {n + 1} → stage {n + 2}", sender=n, receiver=n + 1, payload=payload, transport="gloo")
        for n in range(count - 1)
    )
    store = TCPStore(addresses[0], PORT, count, rank == 0)
    groups = EdgeGroups(edges=edges, num_ranks=count, timeout=60.0, queue_depth=depth, secret=bytes(32))
    ends = groups.join(rank, torch.device("cpu"), Clock(), store, address=addresses[rank])
    ended = []
    for step in range(steps):
        for inbox in ends.inboxes:
            inbox.receive()
        time.sleep(before)
        for outbox in ends.outboxes:
            outbox.send(Message(Kind.TRAIN, step=step, tensors=message.tensors))
        time.sleep(after)
        ended.append(time.monotonic())
    for outbox in ends.outboxes:
        outbox.close()
    if rank == count - 1:
        print("ended", json.dumps(ended), flush=True)
    time.sleep(1)  # neighbours may be reading yet
    os._exit(0)


if __name__ == "__main__":
    run(**json.loads(sys.argv[1]))
