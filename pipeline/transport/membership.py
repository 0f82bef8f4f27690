"""Whether what is at the other end of a connection belongs to the run.

gloo takes whoever connects first. So each end sends a number that nobody can foresee, and then shows that it knows the
run's secret: by a code over both numbers (HMAC-SHA-256, RFC 2104), which says nothing of the secret and fits no other
connection. Until then nothing that has come is looked at.
"""

from __future__ import annotations

import hmac
import secrets

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import PeerLostError
from pipeline.transport.base import Edge

_BYTES = 32


def check_member(edge: Edge, rank: int, group: dist.ProcessGroup, secret: bytes) -> None:
    """Called at both ends of an edge at the same time.

    Args:
        rank: this end's.
        group: of both ends.

    Raises:
        PeerLostError: the other end does not know the secret.
    """
    peer = edge.receiver if rank == edge.sender else edge.sender
    begins = rank == edge.sender
    mine = secrets.token_bytes(_BYTES)
    theirs = _swap(mine, peer, group, begins=begins)
    answer = _swap(_code(secret, edge, rank, mine, theirs), peer, group, begins=begins)
    if not hmac.compare_digest(answer, _code(secret, edge, peer, theirs, mine)):
        raise PeerLostError(f"{edge.name}: what is at the other end is not of this run")


def _code(secret: bytes, edge: Edge, rank: int, own: bytes, other: bytes) -> bytes:
    """What the end of that rank shows."""
    return hmac.digest(secret, f"{edge.name} {rank} ".encode() + own + other, "sha256")


def _swap(said: bytes, peer: int, group: dist.ProcessGroup, *, begins: bool) -> bytes:
    """Sends so many bytes and receives as many; first sends, where this end begins."""
    sent: Tensor = torch.frombuffer(bytearray(said), dtype=torch.uint8)  # (32,)
    heard = torch.empty_like(sent)
    if begins:
        dist.send(sent, peer, group=group)
    dist.recv(heard, peer, group=group)
    if not begins:
        dist.send(sent, peer, group=group)
    return heard.numpy().tobytes()
