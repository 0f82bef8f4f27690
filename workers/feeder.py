"""A feeder in a Ray actor: reads, shuffles and batches images, beside the stages."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch

from pipeline.config.build import open_folder
from pipeline.config.checks import data_dir
from pipeline.config.run_spec import RunSpec
from pipeline.data import prepare
from pipeline.data.kept import NewImages
from pipeline.data.loader import Dataset
from pipeline.errors import PeerLostError, StageFailedError, UserError
from pipeline.runtime.checkpointing import Checkpointing, Pacer, pacer_of
from pipeline.runtime.feeder import Tokens, messages, trace_token
from pipeline.runtime.passes import Pass
from pipeline.stores import is_url
from pipeline.telemetry.clock import Clock
from pipeline.telemetry.machine import MachineProbe
from pipeline.telemetry.reports import FeederStatus
from pipeline.telemetry.trace import TraceWish
from pipeline.transport.edges import Ends
from workers.attempts import of_attempt
from workers.rendezvous import RunGroups
from workers.signals import die_of_sigterm


def open_source(spec: RunSpec) -> Dataset:
    """The run's data on this node; of a data set at a URL a copy is made here where there is none.

    Raises:
        StageFailedError: there are none, or other data than where the run was launched; the message names the node.
    """
    data, folder = spec.settings.data, Path(spec.data_folder)
    where = ray.util.get_node_ip_address()
    try:
        if is_url(data.data) and not folder.is_dir():
            folder = prepare.resolve(data.data, data_dir=data_dir(spec.settings), strict=data.strict_data)
        source = open_folder(spec.settings, folder)
    except UserError as error:
        raise StageFailedError(f"{spec.data_name} cannot be read on {where}: {error} {_ADVICE}") from error
    if source.index.content_hash != spec.content_hash:
        raise StageFailedError(f"{folder} holds other data on {where} than where the run was launched. {_ADVICE}")
    return source


_ADVICE = (
    "Prepare the same data set on every node that feeds, or use `feeders` 1, which reads where the run is launched."
)


def check_source(spec: RunSpec) -> None:
    """As ``open_source`` on the node where it is called, in a task before any worker is started."""
    open_source(spec)


class FeederWorker:
    """Feeder ``number`` of a run: every F-th batch, F the number of feeders. As ``StageWorker``, it begins anew with
    every attempt at the run. ``attempt`` as in ``workers.attempts``."""

    def __init__(self, spec: RunSpec, number: int) -> None:
        die_of_sigterm()
        self.spec, self.number = spec, number
        torch.set_num_threads(1)
        self._source = open_source(spec)
        self._machine = MachineProbe(torch.device("cpu"))
        self._begun: _Begun | None = None

    def begin(self, checkpointing: Checkpointing, attempt: int) -> None:
        """Takes up its part of the run; ``feed`` says from where on."""
        if self._begun is not None:
            self._begun.ends.break_off()
        self._begun = _Begun(attempt, pacer_of(self.spec, checkpointing), NewImages(self._source))

    def connect(self, attempt: int, groups: RunGroups, first: Any) -> None:
        """Joins the run's process groups and opens the channel to stage 1; ``first`` as ``StageWorker.connect``."""
        own, rank = self._of(attempt), self.spec.num_stages + self.number
        own.ends, _ = groups.join(rank, torch.device("cpu"), own.clock, first)

    def feed(self, attempt: int, passes: Sequence[Pass], *, once: bool) -> None:
        """Sends the batches of these passes. Returns when the last one has been handed over.

        Args:
            once: the first stage keeps the images, and is sent each of them once.
        """
        own = self._of(attempt)
        (sender,) = own.ends.outboxes
        try:
            with own.one_at_a_time:
                for message in messages(
                    own.new_images if once else self._source,
                    passes,
                    batch_size=self.spec.settings.train.batch_size,
                    part=(self.number, self.spec.settings.pipeline.feeders),
                    interrupted=own.interrupted.is_set,
                    pacer=own.pacer,
                    tokens=own.tokens if self.number == 0 else None,
                    clock=own.clock,
                ):
                    sender.send(message)
        except BaseException as error:
            if isinstance(error, PeerLostError) and own.interrupted.is_set():
                return  # after a stop from another feeder, stage 1 takes nothing more
            own.ends.break_off()
            raise

    def poll(self, attempt: int) -> FeederStatus:
        """Where its time went; answered while ``feed`` works."""
        return FeederStatus(account=self._of(attempt).clock.read(), machine=self._machine.read())

    def checkpoint(self, attempt: int) -> None:
        """Has a checkpoint be saved before the next batch."""
        pacer = self._of(attempt).pacer
        assert pacer is not None, "the run saves checkpoints"
        pacer.ask()

    def trace(self, attempt: int, wish: TraceWish) -> None:
        """Has a token for a trace go before the next training batch."""
        self._of(attempt).tokens.add(trace_token(wish))

    def interrupt(self, attempt: int) -> None:
        self._of(attempt).interrupted.set()

    def _of(self, attempt: int) -> _Begun:
        return of_attempt(self._begun, attempt, f"feeder {self.number + 1}")


@dataclass
class _Begun:
    """What a feeder has in one attempt at the run, from ``begin`` on; its channel from ``connect`` on."""

    attempt: int
    pacer: Pacer | None
    new_images: NewImages
    clock: Clock = field(default_factory=Clock)
    tokens: Tokens = field(default_factory=Tokens)
    interrupted: threading.Event = field(default_factory=threading.Event)
    one_at_a_time: threading.Lock = field(default_factory=threading.Lock)
    ends: Ends = field(default_factory=Ends)
