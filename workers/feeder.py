"""A feeder in a Ray actor: reads, shuffles and batches images, beside the stages."""

from __future__ import annotations

import threading
from collections.abc import Sequence
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
    every attempt at the run."""

    def __init__(self, spec: RunSpec, number: int) -> None:
        die_of_sigterm()
        self.spec, self.number = spec, number
        torch.set_num_threads(1)
        self._source = open_source(spec)
        self._new_images = NewImages(self._source)
        self._pacer: Pacer | None = None
        self._tokens = Tokens()
        self._ends = Ends()
        self._clock, self._machine = Clock(), MachineProbe(torch.device("cpu"))
        self._interrupted = threading.Event()
        self._one_at_a_time = threading.Lock()

    def begin(self, checkpointing: Checkpointing) -> None:
        """Takes up its part of the run; ``feed`` says from where on."""
        self._ends.break_off()
        self._ends, self._clock = Ends(), Clock()
        self._pacer, self._tokens = pacer_of(self.spec, checkpointing), Tokens()
        self._new_images = NewImages(self._source)
        self._interrupted = threading.Event()

    def connect(self, groups: RunGroups, first: Any) -> None:
        """Joins the run's process groups and opens the channel to stage 1; ``first`` as ``StageWorker.connect``."""
        rank = self.spec.num_stages + self.number
        self._ends, _ = groups.join(rank, torch.device("cpu"), self._clock, first)

    def feed(self, passes: Sequence[Pass], *, once: bool) -> None:
        """Sends the batches of these passes. Returns when the last one has been handed over.

        Args:
            once: the first stage keeps the images, and is sent each of them once.
        """
        (sender,) = self._ends.outboxes
        try:
            with self._one_at_a_time:
                for message in messages(
                    self._new_images if once else self._source,
                    passes,
                    batch_size=self.spec.settings.train.batch_size,
                    part=(self.number, self.spec.settings.pipeline.feeders),
                    interrupted=self._interrupted.is_set,
                    pacer=self._pacer,
                    tokens=self._tokens if self.number == 0 else None,
                    clock=self._clock,
                ):
                    sender.send(message)
        except BaseException as error:
            if isinstance(error, PeerLostError) and self._interrupted.is_set():
                return  # after a stop from another feeder, stage 1 takes nothing more
            self._ends.break_off()
            raise

    def poll(self) -> FeederStatus:
        """Where its time went; answered while ``feed`` works."""
        return FeederStatus(account=self._clock.read(), machine=self._machine.read())

    def checkpoint(self) -> None:
        """Has a checkpoint be saved before the next batch."""
        assert self._pacer is not None, "the run saves checkpoints"
        self._pacer.ask()

    def trace(self, wish: TraceWish) -> None:
        """Has a token for a trace go before the next training batch."""
        self._tokens.add(trace_token(wish))

    def interrupt(self) -> None:
        self._interrupted.set()
