"""What several tests need: a small run, and two processes joined by a channel as the pipeline joins its stages."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.distributed import FileStore  # type: ignore[attr-defined]  # public, though not re-exported for mypy

from pipeline.config.partition import partition
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import PipelineSettings, ReadoutSettings, Settings, TrainSettings
from pipeline.data.augment import AugmentConfig
from pipeline.methods import Activations, CffSettings, MethodConfig, Rule
from pipeline.methods.cfl import LabelEmbeddingRule
from pipeline.nets import Layer, NetConfig, VitSettings
from pipeline.runtime.observer import Observer
from pipeline.telemetry.clock import Clock
from pipeline.telemetry.reports import PassReport
from pipeline.transport import Transport
from pipeline.transport.base import Edge
from pipeline.transport.channel import Receiver, Sender
from pipeline.transport.edges import EdgeGroups, Ends

CPU = torch.device("cpu")


def outputs_of(layer: Layer, activations: Tensor, rule: Rule | None = None) -> Activations:
    """What a rule's ``run`` gives for a layer whose activations are these; without a rule, any pooled one's."""
    if isinstance(rule, LabelEmbeddingRule):
        return rule.outputs(layer, activations)
    return {"x": activations, "pooled": layer.pool(activations)}


def tiny_spec(
    *,
    net: NetConfig | None = None,
    method: MethodConfig | None = None,
    num_classes: int = 3,
    batch_size: int = 6,
    stages: int = 1,
    seed: int = 0,
    lr: float = 4e-3,
    readout: Literal["after", "online"] = "after",
    precision: Literal["fp32", "bf16"] = "fp32",
) -> RunSpec:
    """A run on 8×8 images in one channel that a test can hold in its head; no data lie behind it."""
    settings = Settings(
        net=net or VitSettings(dim=8, heads=2, depth=3, patch=2),
        method=method or CffSettings(),
        train=TrainSettings(epochs=2, batch_size=batch_size, seed=seed, lr=lr),
        readout=ReadoutSettings(mode=readout, readout_epochs=1, readout_lr=1e-2),
        pipeline=PipelineSettings(executor="threads", stages=stages, device="cpu", precision=precision),
    )
    return RunSpec(
        settings=settings,
        data_folder="/nowhere",
        data_name="none",
        content_hash="0",
        shape=(1, 8, 8),
        num_images=(24, 6),
        classes=tuple(str(label) for label in range(num_classes)),
        augment=AugmentConfig(crop_padding=1, flip=False, mean=(0.5,), std=(0.25,)),
        top_k=2,
        steps_per_epoch=4,
        stages=partition(settings.method.adapt(settings.net).num_layers, stages),
        device="cpu",
    )


def changed(spec: RunSpec, group: str, **values: Any) -> RunSpec:
    """The run with other settings of one group, such as ``changed(spec, "train", milestones=(1,))``."""
    settings = replace(spec.settings, **{group: replace(getattr(spec.settings, group), **values)})
    return replace(spec, settings=settings)


# ---------------------------------------------------------------------------------------------------------------------
# Two processes and a channel between them

LONG = 120.0
"""Seconds: no more than that nothing hangs. On a busy machine it takes many until both processes are there."""

_EDGE = "stage 1 → stage 2"
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    ["torch", "torch.distributed", "pipeline.transport.channel", "pipeline.transport.edges", "tests.support"]
)
"""Processes are forked from one that has imported torch and started nothing: an end of a channel starts in a moment."""


@dataclass
class End:
    """One end of a channel, inside its process: the channels, their clock, and a line to the test."""

    clock: Clock
    num_sent: Any  # a counter that both ends see; the sender's function counts
    ends: Ends
    line: multiprocessing.connection.Connection

    @property
    def sender(self) -> Sender:
        return self.ends.outboxes[0]

    @property
    def receiver(self) -> Receiver:
        return self.ends.inboxes[0]

    def tell(self, word: str) -> None:
        """Lets the test, which waits for ``word`` in ``Pair.expect``, go on."""
        self.line.send(("told", word))


Work = Callable[[End], Any]


@dataclass
class Pair:
    """A sender and a receiver process. Each runs a function of the test module on its ``End``."""

    sending: Work
    receiving: Work
    depth: int = 2
    payload: int = 1 << 16
    stall_timeout: float = 60.0
    transport: Transport = "gloo"
    prepare: Callable[[int], None] | None = None
    """What an end's process does first, given its rank: 0 sends."""
    processes: list[Any] = field(default_factory=list, init=False)
    lines: list[multiprocessing.connection.Connection] = field(default_factory=list, init=False)

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()  # it and the counter live as long as the pair
        edge = Edge(_EDGE, 0, 1, self.payload, self.transport)
        groups = EdgeGroups((edge,), 2, self.stall_timeout, self.depth)
        num_sent = self._num_sent = FORKED.Value("q", 0)
        both = self._both = FORKED.Barrier(2)
        for rank, work in enumerate((self.sending, self.receiving)):
            ours, theirs = FORKED.Pipe()
            arguments = (rank, self.prepare, work, groups, Path(self._folder.name, "store"), both, num_sent, theirs)
            process = FORKED.Process(target=_end, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.lines.append(ours)
        return self

    def __exit__(self, *_: object) -> None:
        for process, line in zip(self.processes, self.lines, strict=True):
            process.kill()
            process.join(10)
            line.close()
        self._folder.cleanup()

    def expect(self, rank: int, word: str, timeout: float = LONG) -> None:
        """Waits until an end tells ``word``."""
        answer = self._hear(rank, timeout)
        assert answer == ("told", word), answer

    def result(self, rank: int, timeout: float = LONG) -> Any:
        """What an end's function returned. Raises AssertionError with its traceback where it raised."""
        kind, value = self._hear(rank, timeout)
        assert kind == "returned", value
        return value

    def kill(self, rank: int) -> float:
        """SIGKILL to an end. Returns the moment, on the clock that all processes share."""
        moment = time.monotonic()
        self.processes[rank].kill()
        self.processes[rank].join(10)
        return moment

    def _hear(self, rank: int, timeout: float) -> tuple[str, Any]:
        if not self.lines[rank].poll(timeout):
            raise AssertionError(f"rank {rank} said nothing for {timeout:g} s")
        answer: tuple[str, Any] = self.lines[rank].recv()
        return answer


def run_pair(sending: Work, receiving: Work, *, timeout: float = LONG, **settings: Any) -> tuple[Any, Any]:
    """Runs both ends to their end; what their functions returned."""
    with Pair(sending, receiving, **settings) as pair:
        return pair.result(0, timeout), pair.result(1, timeout)


def _end(
    rank: int,
    prepare: Callable[[int], None] | None,
    work: Work,
    groups: EdgeGroups,
    store: Path,
    both: Any,
    num_sent: Any,
    line: multiprocessing.connection.Connection,
) -> None:
    torch.set_num_threads(1)
    clock = Clock()
    try:
        if prepare is not None:
            prepare(rank)
        both.wait(LONG)  # the one that is there first would lose the other after the stall timeout
        ends = groups.join(rank, CPU, clock, file_store(store, groups))
        clock.restart()
        line.send(("returned", work(End(clock, num_sent, ends, line))))
        line.poll(LONG)  # the channel stays open until the test has heard both ends
    except BaseException:  # noqa: BLE001 - whatever it was, the test is to see it
        line.send(("raised", traceback.format_exc()))
        line.poll(LONG)


def file_store(path: Path, groups: EdgeGroups) -> FileStore:
    """Where ranks on one machine meet."""
    store = FileStore(str(path), groups.num_ranks)
    store.set_timeout(timedelta(seconds=LONG))
    return store


def opened(rank: int, groups: EdgeGroups, store: Path) -> Callable[[None], bool]:
    """In a process of its own: opens its ends of edges; says whether there are any."""
    ends = groups.join(rank, CPU, Clock(), file_store(store, groups))
    return lambda _: bool(ends.inboxes or ends.outboxes)


class Watching(Observer):
    """An observer made of functions."""

    def __init__(
        self,
        observe: Callable[[PassReport], None] = lambda report: None,
        interrupted: Callable[[], bool] = lambda: False,
        notify: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self._observe, self._interrupted, self._notify = observe, interrupted, notify

    def pass_finished(self, report: PassReport) -> None:
        self._observe(report)

    def interrupted(self) -> bool:
        return self._interrupted()

    def notified(self, sentence: str) -> None:
        self._notify(sentence)
