"""The pipeline in one process: a thread per stage and feeder, joined by in-process channels. No Ray, no sockets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from pipeline.checkpoints.saver import SavedFile, Saver
from pipeline.config.run_spec import RunSpec
from pipeline.data.kept import NewImages
from pipeline.data.loader import Dataset
from pipeline.errors import PeerLostError, RunError, StageFailedError
from pipeline.layers.state import State
from pipeline.runtime import stage as stages
from pipeline.runtime.checkpointing import NO_CHECKPOINTS, Checkpointing, pacer_of, shared_state
from pipeline.runtime.controller import control
from pipeline.runtime.feeder import (
    BatchReceiver,
    BatchSource,
    MergedReceiver,
    Passes,
    Tokens,
    messages,
    trace_token,
)
from pipeline.runtime.history import RunResult, Salvage
from pipeline.runtime.observer import Observer
from pipeline.runtime.passes import Pass
from pipeline.runtime.process import configure_process
from pipeline.runtime.stage import Stage
from pipeline.telemetry.clock import Clock
from pipeline.telemetry.reports import FeederStatus, PassReport, Status
from pipeline.telemetry.trace import StageTrace, TraceWish
from pipeline.transport.channel import LocalChannel, Receiver

_T = TypeVar("_T")
_LEAVE = 10.0  # seconds that threads have to end after a run: those amid a long step end after it


def train_threads(
    spec: RunSpec,
    source: Dataset,
    observer: Observer = Observer(),  # noqa: B008 (it has no state)
    checkpointing: Checkpointing = NO_CHECKPOINTS,
) -> RunResult:
    """As ``pipeline.runtime.serial.train_serial``, stage by stage in threads."""
    group = ThreadWorkers(spec, source, checkpointing)
    try:
        return control(spec, group, observer, checkpointing)
    finally:
        group.close()


class ThreadWorkers:
    """The workers of a run as threads. Implements ``pipeline.runtime.controller.WorkerGroup``."""

    def __init__(self, spec: RunSpec, source: Dataset, checkpointing: Checkpointing = NO_CHECKPOINTS) -> None:
        settings = spec.settings.pipeline
        self._spec = spec
        devices = [spec.stage_device(index) for index in range(spec.num_stages)]
        self.devices = [str(device) for device in devices]
        self._clocks = [Clock() for _ in devices]
        self._reports: list[list[PassReport]] = [[] for _ in devices]
        self._traces: list[StageTrace] = []
        self._tokens = Tokens()
        folder, resume = checkpointing.folder, checkpointing.resume
        self._savers = [Saver(folder) if folder is not None else None for _ in devices]
        self._shared_saver = Saver(folder) if folder is not None and spec.shared_versions is not None else None
        self._shared = shared_state(spec, self._shared_saver, resume) if spec.shared_versions is not None else None
        self._stages = [
            Stage(
                spec,
                index,
                device,
                report=self._reports[index].append,
                clock=self._clocks[index],
                shared=self._shared,
                saver=self._savers[index],
                resume=resume,
                traced=self._traces.append,
            )
            for index, device in enumerate(devices)
        ]
        for stage, device in zip(self._stages, devices, strict=True):
            if spec.graphs:  # here, while nothing else is at work on the device
                configure_process(spec, device)
                stage.capture()
        self._feed_clocks = [Clock() for _ in range(settings.feeders)]
        self._feeds = [
            self._channel(f"feeder {number + 1} → stage 1", clock, self._clocks[0])
            for number, clock in enumerate(self._feed_clocks)
        ]
        self._edges = [
            self._channel(f"stage {index + 1} → stage {index + 2}", self._clocks[index], self._clocks[index + 1])
            for index in range(spec.num_stages - 1)
        ]
        self._pacer = pacer_of(spec, checkpointing)
        batch_size = spec.settings.train.batch_size
        self._sources: list[BatchSource] = [
            NewImages(source) if self._stages[0].keeps_images else source for _ in range(max(1, settings.feeders))
        ]
        self._reader = (
            BatchReceiver(
                self._sources[0],
                batch_size=batch_size,
                clock=self._clocks[0],
                pacer=self._pacer,
                tokens=self._tokens,
                pinned=devices[0].type == "cuda",
            )
            if not settings.feeders
            else None
        )
        merged = MergedReceiver(self._feeds, first=checkpointing.cut.steps) if self._feeds else None
        self._inboxes: list[Receiver] = [*(one for one in (self._reader or merged,) if one is not None), *self._edges]
        self._interrupted = threading.Event()
        self._failures: list[RunError] = []
        self._passes = Passes()
        self._stage_threads = [
            self._start(
                f"stage {index + 1}",
                lambda index=index: self._run_stage(index),  # type: ignore[misc]
                self._channels_of(index),
            )
            for index in range(spec.num_stages)
        ]
        self._feed_threads = [
            self._start(f"feeder {number + 1}", lambda number=number: self._run_feeder(number))  # type: ignore[misc]
            for number in range(settings.feeders)
        ]

    def _channel(self, name: str, sender: Clock, receiver: Clock) -> LocalChannel:
        settings = self._spec.settings.pipeline
        return LocalChannel(
            name,
            depth=settings.depth,
            stall_timeout=settings.stall_timeout,
            sender_clock=sender,
            receiver_clock=receiver,
        )

    def _start(self, name: str, work: Callable[[], None], channels: Sequence[LocalChannel] = ()) -> threading.Thread:
        """Works in a thread. A failure is noted before anything is broken off: so a cause comes before what it makes
        other threads lose, whatever order they run in.

        Args:
            channels: that end with the work.
        """

        def guarded() -> None:
            failure = _failure_of(name, work)
            if failure is not None:
                self._failures.append(failure)
            for channel in channels:
                channel.break_off()
            if failure is not None and self._shared is not None:
                self._shared.break_off()  # other stages may be waiting for what this one cannot give

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    def _run_stage(self, index: int) -> None:
        configure_process(self._spec, self._spec.stage_device(index))
        outbox = self._edges[index] if index < len(self._edges) else None
        stages.run(self._stages[index], self._inboxes[index], outbox, self._clocks[index])

    def _channels_of(self, index: int) -> list[LocalChannel]:
        """A stage's, to both neighbours."""
        return [*(self._feeds if index == 0 else [self._edges[index - 1]]), *self._edges[index : index + 1]]

    def _run_feeder(self, number: int) -> None:
        settings = self._spec.settings
        try:
            for message in messages(
                self._sources[number],
                self._passes,
                batch_size=settings.train.batch_size,
                part=(number, settings.pipeline.feeders),
                interrupted=self._interrupted.is_set,
                pacer=self._pacer,
                tokens=self._tokens if number == 0 else None,
                clock=self._feed_clocks[number],
                pinned=self._spec.device == "cuda",
            ):
                self._feeds[number].send(message)
        except PeerLostError:
            if not self._interrupted.is_set():  # after a stop from another feeder, stage 1 takes nothing more
                raise

    def feed(self, passes: Sequence[Pass]) -> None:
        self._passes.add(passes)
        if self._reader is not None:
            self._reader.feed(passes)

    def interrupt(self) -> None:
        self._interrupted.set()
        if self._reader is not None:
            self._reader.interrupt()

    def checkpoint(self) -> None:
        if self._pacer is not None:
            self._pacer.ask()

    def trace(self, wish: TraceWish) -> None:
        self._tokens.add(trace_token(wish))

    def traces(self) -> list[StageTrace]:
        return take(self._traces)

    def saved(self) -> list[SavedFile]:
        return [file for saver in self._all_savers for file in saver.take()]

    def saving(self) -> bool:
        return any(saver.busy for saver in self._all_savers)

    @property
    def _all_savers(self) -> list[Saver]:
        return [saver for saver in (*self._savers, self._shared_saver) if saver is not None]

    def poll(self) -> list[tuple[Status, list[PassReport]]]:
        polled = []
        for stage, inbox, reports in zip(self._stages, self._inboxes, self._reports, strict=True):
            status = stage.status()
            status.waiting = inbox.waiting
            polled.append((status, take(reports)))
        polled[0][0].feeders = [FeederStatus(account=clock.read()) for clock in self._feed_clocks]
        return polled

    def wait(self, seconds: float) -> bool:
        end = time.perf_counter() + seconds
        for thread in self._stage_threads:
            thread.join(max(0.0, end - time.perf_counter()))
        if self._failures:
            raise self._failures[0]  # neighbours of a failed stage fail too, and later
        return not any(thread.is_alive() for thread in self._stage_threads)

    def keep_only(self, best: int, upto: int) -> None:
        for stage in self._stages:
            stage.keep_only(best, upto)
        if self._shared is not None:
            self._shared.keep_only(best, upto)

    def candidate(self, epoch: int) -> State:
        shared = self._shared.candidate_weights(epoch) if self._shared is not None else {}
        return _merged([*(stage.candidate(epoch) for stage in self._stages), shared])

    def weights(self) -> State:
        shared = self._shared.weights() if self._shared is not None else {}
        return _merged([*(stage.weights() for stage in self._stages), shared])

    def trained(self) -> State:
        shared = self._shared.state() if self._shared is not None else {}
        return _merged([*(stage.trained() for stage in self._stages), shared])

    def salvage(self, epoch: int | None) -> Salvage:
        weights = self.weights() if epoch is None else self.candidate(epoch)
        return Salvage(weights=weights, last=self.trained(), lost=[])  # threads that have failed can still be asked

    def close(self) -> None:
        """Ends all threads, and waits a moment for them: one that outlives the interpreter aborts the process.

        Those in the middle of a long step end after it.
        """
        self.interrupt()
        self._passes.close()
        for channel in [*self._feeds, *self._edges]:
            channel.break_off()
        if self._shared is not None:
            self._shared.break_off()
        end = time.perf_counter() + _LEAVE
        for thread in [*self._feed_threads, *self._stage_threads]:
            thread.join(max(0.0, end - time.perf_counter()))
        for saver in self._all_savers:
            saver.close()


def take(told: list[_T]) -> list[_T]:
    """Takes what there is off a list that another thread adds to: nothing that comes meanwhile is lost."""
    count = len(told)
    taken = told[:count]
    del told[:count]
    return taken


def _failure_of(name: str, work: Callable[[], None]) -> RunError | None:
    """Does the work; what ends it, named if it has no name."""
    try:
        work()
    except RunError as error:
        return error
    except Exception as error:  # noqa: BLE001 (whatever it is, the run ends with it)
        failed = StageFailedError(f"{name} failed: {type(error).__name__}: {error}")
        failed.__cause__ = error
        return failed
    return None


def _merged(states: Iterable[State]) -> State:
    return {name: value for state in states for name, value in state.items()}
