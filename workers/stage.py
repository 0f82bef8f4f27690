"""A stage in a Ray actor of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, though not re-exported for mypy

from pipeline.checkpoints.saver import SavedFile, Saver
from pipeline.config.run_spec import RunSpec
from pipeline.layers.layer import State
from pipeline.runtime import stage as stages
from pipeline.runtime.checkpointing import NO_CHECKPOINTS, Checkpointing, pacer_of
from pipeline.runtime.edges import edge_bytes
from pipeline.runtime.feeder import BatchReceiver, MergedReceiver
from pipeline.runtime.passes import Pass
from pipeline.runtime.process import configure_process
from pipeline.runtime.stage import Stage
from pipeline.runtime.threads import take
from pipeline.telemetry.clock import Clock
from pipeline.telemetry.memory import give_back, peak_bytes, reset_peak
from pipeline.telemetry.reports import PassReport, Status
from pipeline.transport.channel import Receiver, Sender
from pipeline.transport.edges import EdgeGroups
from workers.coordinator import RemoteState
from workers.feeder import open_source
from workers.names import StageName
from workers.signals import die_of_sigterm


@dataclass(frozen=True)
class Polled:
    """What a stage has to say since it was asked last.

    Attributes:
        saved: files of checkpoints that came to their end.
        saving: whether others are being written.
    """

    status: Status
    reports: list[PassReport]
    saved: list[SavedFile]
    saving: bool


class StageWorker:
    """Holds a stage and its channels. ``run`` works in one thread; all other calls are answered beside it."""

    def __init__(
        self,
        spec: RunSpec,
        name: StageName,
        coordinator: Any = None,
        checkpointing: Checkpointing = NO_CHECKPOINTS,
    ) -> None:
        die_of_sigterm()
        self.spec, self.name = spec, name
        self._cut, folder = checkpointing.cut, checkpointing.folder
        self._reports: list[PassReport] = []
        self._clock = Clock()
        self._device = _own_device(spec)
        configure_process(spec, self._device)
        shared = (
            RemoteState(spec, coordinator, spec.stages[name.stage], checkpointing.cut)
            if coordinator is not None
            else None
        )
        self._saver = Saver(folder) if folder is not None else None
        self._stage = Stage(
            spec,
            name.stage,
            self._device,
            report=self._report,
            clock=self._clock,
            shared=shared,
            saver=self._saver,
            resume=checkpointing.resume,
        )
        self._reader = None
        self._pacer = pacer_of(spec, checkpointing)
        if name.stage == 0 and not spec.settings.pipeline.feeders:
            size = spec.settings.train.batch_size
            self._reader = BatchReceiver(open_source(spec), batch_size=size, clock=self._clock, pacer=self._pacer)
        self._store: TCPStore | None = None
        self._inbox: Receiver | None = None
        self._outbox: Sender | None = None

    def describe(self) -> str:
        """Node and device, for people."""
        return f"{ray.util.get_node_ip_address()} {self._device}"

    def open_store(self) -> tuple[str, int]:
        """Opens the store at which all workers meet; returns its host and port. Asked of the first stage."""
        host = ray.util.get_node_ip_address()
        timeout = timedelta(seconds=self.spec.settings.pipeline.stall_timeout)
        self._store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        return host, self._store.port

    def edge_bytes(self) -> list[int]:
        """The largest message on each edge. Asked of the first stage: the dry run needs modules of torch that take two
        seconds to import, which whoever asks has no other use for, and a stage's optimizer has them already."""
        return edge_bytes(self.spec)

    def connect(self, groups: EdgeGroups) -> None:
        """Joins the run's process groups and opens the channels to both neighbours."""
        ends = groups.join(
            self.name.stage, self._device, self._clock, self._store, address=ray.util.get_node_ip_address()
        )
        if self._reader is not None:
            self._inbox = self._reader
        else:
            self._inbox = (
                MergedReceiver(ends.inboxes, first=self._cut.steps) if self.name.stage == 0 else ends.inboxes[0]
            )
        self._outbox = next(iter(ends.outboxes), None)

    def run(self) -> None:
        """Works until the stop token. Raises what the stage or a channel raises."""
        assert self._inbox is not None, "connect() comes first"
        configure_process(self.spec, self._device)
        stages.run(self._stage, self._inbox, self._outbox, self._clock)

    def feed(self, passes: Sequence[Pass]) -> None:
        """Has a first stage without feeders read these passes."""
        assert self._reader is not None, "feeders feed"
        self._reader.feed(passes)

    def interrupt(self) -> None:
        """Has it stop in place of the next batch."""
        assert self._reader is not None, "feeders are interrupted"
        self._reader.interrupt()

    def checkpoint(self) -> None:
        """Has a checkpoint be saved before the next batch."""
        assert self._pacer is not None, "the run saves checkpoints"
        self._pacer.ask()

    def peak_bytes(self, *, reset: bool = False) -> int:
        """Most memory held since the last reset (``pipeline.telemetry.memory``)."""
        peak = peak_bytes(self._device)
        if reset:
            reset_peak(self._device)
        return peak

    def give_back(self) -> None:
        """Gives freed memory back, between two batches."""
        give_back(self._device)

    def poll(self) -> Polled:
        saving = self._saver is not None and self._saver.busy
        saved = self._saver.take() if self._saver is not None else []  # first: their reports are there by now
        status = self._stage.status()
        status.replica = self.name.replica
        status.device = self.describe()
        status.waiting = self._inbox.waiting if self._inbox is not None else 0
        return Polled(status, take(self._reports), saved, saving)

    def _report(self, report: PassReport) -> None:
        report.replica = self.name.replica
        self._reports.append(report)

    def keep_only(self, best: int, upto: int) -> None:
        self._stage.keep_only(best, upto)

    def candidate(self, epoch: int) -> State:
        return self._stage.candidate(epoch)

    def weights(self) -> State:
        return self._stage.weights()

    def trained(self) -> State:
        return self._stage.trained()


def _own_device(spec: RunSpec) -> torch.device:
    """The GPU that Ray gave this actor. Ray names it as the node does, torch counts those that the process may see."""
    if spec.device == "cpu":
        return torch.device("cpu")
    given, visible = str(ray.get_gpu_ids()[0]), os.environ.get("CUDA_VISIBLE_DEVICES")
    return torch.device("cuda", visible.split(",").index(given) if visible else int(given))
