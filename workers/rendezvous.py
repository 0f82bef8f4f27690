"""Where the workers of a run meet: what they tell each other while they open their channels, carried by Ray.

torch.distributed and the transports meet at a store. One that listens on a port, as torch's own does, takes keys from
whoever finds it. Here every worker has a store in its own memory, and for as long as the channels are being opened a
thread of it passes on, through the first stage's actor, what appears there. Only who may call the actor takes part, and
nothing of it stays.
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]  # public, though not re-exported for mypy

from pipeline.errors import PeerLostError
from pipeline.telemetry.clock import Clock
from pipeline.transport.edges import EdgeGroups, Ends

_PAUSE = 0.002  # seconds between two questions, for every worker that asks

Said = list[tuple[str, bytes]]
"""Keys and values, in the order in which they were said."""


class Exchange:
    """What has been said in one attempt at opening the channels. Held by the first stage's actor."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._said: Said = []
        self._one_at_a_time = threading.Lock()

    def exchange(self, secret: bytes, said: Said, heard: int) -> Said:
        """Takes what a worker says, and gives all that was said after the first ``heard``.

        Raises:
            PeerLostError: the worker belongs to another attempt.
        """
        if not hmac.compare_digest(secret, self._secret):
            raise PeerLostError("the run has begun anew")
        with self._one_at_a_time:
            self._said += said
            return self._said[heard:]


@dataclass(frozen=True)
class RunGroups:
    """What all workers of a run join, each with the same rank in both.

    Attributes:
        batches: the edges from feeders to the first stage, and from stage to stage.
        state: those between stages and the coordinator; None: the layers share no state.
    """

    batches: EdgeGroups
    state: EdgeGroups | None = None

    def join(self, rank: int, device: torch.device, clock: Clock, first: Any) -> tuple[Ends, Ends]:
        """Opens a worker's ends of its edges, those of batches and those of the state. All workers at the same time.

        Args:
            clock: accounts for what batches wait. Who reads and changes the state accounts for that.
            first: the first stage's actor, where the workers meet.

        Raises as ``EdgeGroups.join`` does.
        """
        address = ray.util.get_node_ip_address()
        with meeting(first, self.batches) as store:
            lines = Ends()
            if self.state is not None:  # first: nothing of batches holds a device up yet
                lines = self.state.join(rank, torch.device("cpu"), Clock(), store, address=address)
            return self.batches.join(rank, device, clock, store, address=address), lines


@contextmanager
def meeting(first: Any, groups: EdgeGroups) -> Iterator[Store]:
    """A store in which appears what the other workers put into theirs, within the block.

    Args:
        first: the first stage's actor.
    """
    store = HashStore()
    store.set_timeout(timedelta(seconds=groups.timeout))
    all_there = threading.Event()
    thread = threading.Thread(target=_pass_on, args=(store, first, groups, all_there), name="rendezvous", daemon=True)
    thread.start()
    try:
        yield store
    finally:
        all_there.set()
        thread.join()


def _pass_on(store: Store, first: Any, groups: EdgeGroups, all_there: threading.Event) -> None:
    """Says what is new in the store, and puts into it what others say. Once more when all are there, as another worker
    may still wait for what this one has said last."""
    heard: set[str] = set()
    place = 0
    last = False
    while not last:
        last = all_there.is_set()
        said = [(key, store.get(key)) for key in store.list_keys() if key not in heard]
        try:
            answer = ray.get(first.exchange.remote(groups.secret, said, place), timeout=groups.timeout)
        except RayError:  # the launching process hears of it too, and ends what waits here
            return
        place += len(answer)
        for key, value in answer:
            if key not in heard:
                heard.add(key)
                store.set(key, value)
        if not answer:
            all_there.wait(_PAUSE * groups.num_ranks)
