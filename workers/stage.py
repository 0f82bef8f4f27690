"""A stage in a Ray actor of its own."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import torch

from pipeline.checkpoints.saver import SavedFile
from pipeline.config.run_spec import RunSpec
from pipeline.data.kept import NewImages
from pipeline.layers.state import State
from pipeline.runtime import stage as stages
from pipeline.runtime.checkpointing import Checkpointing, Pacer, pacer_of
from pipeline.runtime.edges import edge_bytes
from pipeline.runtime.feeder import BatchReceiver, MergedReceiver, Tokens, trace_token
from pipeline.runtime.passes import Cut, Pass
from pipeline.runtime.process import configure_process
from pipeline.runtime.stage import Stage
from pipeline.runtime.threads import take
from pipeline.telemetry.clock import Clock
from pipeline.telemetry.memory import give_back, peak_bytes, reset_peak
from pipeline.telemetry.profiler import StageProfiler
from pipeline.telemetry.reports import PassReport, Status
from pipeline.telemetry.trace import StageTrace, TraceWish
from pipeline.transport.base import DeviceKind
from pipeline.transport.channel import Receiver
from pipeline.transport.edges import Ends
from workers.attempts import of_attempt
from workers.feeder import open_source
from workers.names import StageName
from workers.parts import HasParts
from workers.remote_state import Part, RemoteState
from workers.rendezvous import Exchange, RunGroups, Said
from workers.signals import die_of_sigterm
from workers.stacks import show_on_demand


@dataclass(frozen=True)
class Polled:
    """What a stage has to say since it was asked last.

    Attributes:
        saved: files of checkpoints that came to their end.
        saving: whether others are being written.
        traces: that came to their end.
        at: when it says so, by its machine's clock, in seconds since 1970.
    """

    status: Status
    reports: list[PassReport]
    saved: list[SavedFile]
    saving: bool
    traces: list[StageTrace] = field(default_factory=list)
    at: float = field(default_factory=time.time)


class StageWorker(HasParts):
    """Holds a stage and its channels. ``run`` works in one thread; all other calls are answered beside it.

    It takes part in a run from ``begin`` on, and again from another ``begin`` on, when the run goes on after another
    worker's failure. ``attempt`` as in ``workers.attempts``.
    """

    def __init__(self, spec: RunSpec, name: StageName) -> None:
        super().__init__()
        die_of_sigterm()
        show_on_demand()
        self.spec, self.name = spec, name
        self._device = own_device("cuda" if spec.device == "cuda" else "cpu")
        configure_process(spec, self._device)
        reads = name.stage == 0 and not spec.settings.pipeline.feeders
        self._source = open_source(spec) if reads else None
        self._exchange: Exchange | None = None
        self._begun: _Begun | None = None

    def begin(self, checkpointing: Checkpointing, coordinator: Any = None, attempt: int = 0) -> bool:
        """Takes up its part of the run, from the beginning or from a checkpoint.

        What it had of an earlier attempt is gone, ``run`` of which has ended.

        Args:
            coordinator: the actor with the state that layers share, which has begun the same attempt.

        Returns:
            Whether it keeps the images on its device.

        Raises:
            DamagedError: the checkpoint's part for this stage cannot be read, or is of another run.
            StageFailedError: what is being written of a checkpoint does not come to its end.
            RunError: a training step cannot be captured as a CUDA graph, and the run asks for that.
        """
        self._forget()
        spec, cut = self.spec, checkpointing.cut
        configure_process(spec, self._device)  # of this thread, too
        clock, pacer, tokens = Clock(), pacer_of(spec, checkpointing), Tokens()
        reports, traces = list[PassReport](), list[StageTrace]()
        saver = self._save_anew(checkpointing, attempt)
        shared: RemoteState | None = None
        if coordinator is not None:
            layers = spec.stages[self.name.stage]
            shared = RemoteState(
                Part(spec=spec, coordinator=coordinator, layers=layers, device=self._device, attempt=attempt)
            )

        def report(one: PassReport) -> None:
            one.replica = self.name.replica
            reports.append(one)

        stage = Stage(
            spec,
            self.name.stage,
            self._device,
            report=report,
            clock=clock,
            shared=shared,
            saver=saver,
            resume=checkpointing.resume,
            traced=traces.append,
            profiler=StageProfiler(self._device),
        )
        stage.capture()
        reader = None
        if self._source is not None:
            size = spec.settings.train.batch_size
            reader = BatchReceiver(
                NewImages(self._source) if stage.keeps_images else self._source,
                batch_size=size,
                clock=clock,
                pacer=pacer,
                tokens=tokens,
                pinned=self._device.type == "cuda",
            )
        self._begun = _Begun(attempt, stage, clock, reports, traces, cut, pacer, tokens, reader, shared)
        return stage.keeps_images

    def _forget(self) -> None:
        """Lets go of an attempt that is over."""
        if self._begun is not None:
            self._begun.break_off()
        self._begun = None
        gc.collect()  # an error's trace may hold the stage, and with it its memory on the GPU
        give_back(self._device)

    def describe(self) -> str:
        """Node and device, for people."""
        return f"{ray.util.get_node_ip_address()} {self._device}"

    def where(self) -> tuple[str, int]:
        """Its node, by Ray's id, and its process there."""
        return str(ray.get_runtime_context().get_node_id()), os.getpid()

    def open_exchange(self, secret: bytes) -> None:
        """Has the workers that know this secret meet here. Asked of the first stage."""
        self._exchange = Exchange(secret)

    def exchange(self, secret: bytes, said: Said, heard: int) -> Said:
        """As ``Exchange.exchange``. Asked of the first stage."""
        assert self._exchange is not None, "open_exchange() comes first"
        return self._exchange.exchange(secret, said, heard)

    def edge_bytes(self) -> list[int]:
        """The largest message on each edge. Asked of the first stage: the dry run needs modules of torch that take two
        seconds to import, which whoever asks has no other use for, and a stage's optimizer has them already."""
        return edge_bytes(self.spec)

    def connect(self, attempt: int, groups: RunGroups, first: Any) -> None:
        """Joins the run's process groups and opens the channels to both neighbours and to the coordinator.

        Args:
            first: the first stage's actor, where the workers meet.
        """
        own = self._of(attempt)
        own.ends, line = groups.join(self.name.stage, self._device, own.clock, first)
        if own.shared is not None:
            own.shared.join(line)
        if own.reader is not None:
            own.inbox = own.reader
        elif self.name.stage == 0:
            own.inbox = MergedReceiver(own.ends.inboxes, first=own.cut.steps)
        else:
            own.inbox = own.ends.inboxes[0]

    def run(self, attempt: int) -> None:
        """Works until the stop token. Raises what the stage or a channel raises; then its channels are broken off, so
        that no other worker waits for it."""
        own = self._of(attempt)
        assert own.inbox is not None, "connect() comes first"
        configure_process(self.spec, self._device)
        try:
            stages.run(own.stage, own.inbox, next(iter(own.ends.outboxes), None), own.clock)
        except BaseException:
            own.break_off()
            raise

    def feed(self, attempt: int, passes: Sequence[Pass]) -> None:
        """Has a first stage without feeders read these passes."""
        self._reader_of(attempt).feed(passes)

    def interrupt(self, attempt: int) -> None:
        """Has a first stage without feeders stop in place of the next batch."""
        self._reader_of(attempt).interrupt()

    def checkpoint(self, attempt: int) -> None:
        """Has a checkpoint be saved before the next batch."""
        pacer = self._of(attempt).pacer
        assert pacer is not None, "the run saves checkpoints"
        pacer.ask()

    def trace(self, attempt: int, wish: TraceWish) -> None:
        """Has a token for a trace go before the next training batch."""
        self._of(attempt).tokens.add(trace_token(wish))

    def peak_bytes(self, *, reset: bool = False) -> int:
        """Most memory held since the last reset (``pipeline.telemetry.memory``)."""
        peak = peak_bytes(self._device)
        if reset:
            reset_peak(self._device)
        return peak

    def give_back(self) -> None:
        """Gives freed memory back, between two batches."""
        give_back(self._device)

    def poll(self, attempt: int) -> Polled:
        saved, saving = self.saved(attempt)  # first: their reports are there by now
        own = self._of(attempt)
        status = own.stage.status()
        status.replica = self.name.replica
        status.device = self.describe()
        status.waiting = own.inbox.waiting if own.inbox is not None else 0
        return Polled(status, take(own.reports), saved, saving, take(own.traces))

    def keep_only(self, attempt: int, best: int, upto: int) -> None:
        self._of(attempt).stage.keep_only(best, upto)

    def candidate(self, attempt: int, epoch: int) -> State:
        return self._of(attempt).stage.candidate(epoch)

    def weights(self, attempt: int) -> State:
        return self._of(attempt).stage.weights()

    def trained(self, attempt: int) -> State:
        return self._of(attempt).stage.trained()

    def _of(self, attempt: int) -> _Begun:
        return of_attempt(self._begun, attempt, f"stage {self.name.stage + 1}")

    def _reader_of(self, attempt: int) -> BatchReceiver:
        reader = self._of(attempt).reader
        assert reader is not None, "feeders do it"
        return reader


@dataclass
class _Begun:
    """What a stage's worker has in one attempt at the run, from ``begin`` on; its channels from ``connect`` on."""

    attempt: int
    stage: Stage
    clock: Clock
    reports: list[PassReport]
    traces: list[StageTrace]
    cut: Cut
    pacer: Pacer | None
    tokens: Tokens
    reader: BatchReceiver | None
    shared: RemoteState | None
    ends: Ends = field(default_factory=Ends)
    inbox: Receiver | None = None

    def break_off(self) -> None:
        """Nobody waits for this stage any more."""
        self.ends.break_off()
        if self.shared is not None:
            self.shared.close()


def own_device(kind: DeviceKind) -> torch.device:
    """The GPU that Ray gave this actor. Ray names it as the node does, torch counts those that the process may see."""
    if kind == "cpu":
        return torch.device("cpu")
    given, visible = str(ray.get_gpu_ids()[0]), os.environ.get("CUDA_VISIBLE_DEVICES")
    return torch.device("cuda", visible.split(",").index(given) if visible else int(given))
