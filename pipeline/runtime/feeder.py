"""The head of the pipeline: batches of images as messages, in the order of the run's passes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from pipeline.data.loader import Batch, Split
from pipeline.kind import Kind
from pipeline.runtime.checkpointing import Pacer
from pipeline.runtime.passes import Pass
from pipeline.telemetry.clock import Clock, TimeCategory
from pipeline.telemetry.trace import TraceWish
from pipeline.transport.channel import Receiver
from pipeline.transport.message import IDS, LABELS, Message

IMAGES = "images"
IMAGE_IDS = "image ids"
"""Which samples a message's images are of, where those are not all of its batch's."""

SPLITS: dict[Kind, Split] = {
    Kind.TRAIN: "train",
    Kind.READOUT: "train",
    Kind.VALIDATE: "validate",
    Kind.TEST: "test",
    Kind.JUDGE: "validate",
}


class BatchSource(Protocol):
    """Where batches come from, such as ``pipeline.data.loader.Dataset``."""

    def batches(
        self, split: Split, *, epoch: int, batch_size: int, part: tuple[int, int], first: int
    ) -> Iterable[Batch]: ...


class Tokens:
    """Control tokens that are to go before the next training batch. May be added from any thread."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def add(self, token: Message) -> None:
        self._waiting.put(token)

    def take(self) -> Iterator[Message]:
        """Those that have come by now."""
        while not self._waiting.empty():
            yield self._waiting.get()


def trace_token(wish: TraceWish) -> Message:
    """Has every stage trace the steps that follow it."""
    return Message(Kind.TRACE, step=wish.steps, position=wish.profiled)


def messages(
    source: BatchSource,
    passes: Iterable[Pass],
    *,
    batch_size: int,
    part: tuple[int, int] = (0, 1),
    interrupted: Callable[[], bool] = lambda: False,
    pacer: Pacer | None = None,
    tokens: Tokens | None = None,
    clock: Clock | None = None,
    pinned: bool = False,
) -> Iterator[Message]:
    """The batches of all passes, one pass behind the other without a pause; control tokens come from feeder 0.

    Args:
        part: (f, F): the share of feeder f of F; every F-th batch.
        interrupted: looked at before each batch; once true, a stop comes and nothing after it.
        pacer: says when a checkpoint is due; None: the run saves none. One more is saved at the end of the layers'
            training, which more epochs may follow, and before the stop of an interrupted run.
        tokens: that are to go between two batches; feeder 0 sends them.
        clock: a feeder's own, on which reading and batching count as busy.
        pinned: batches lie in pinned memory, for a GPU that takes them from it without holding its stage up. A channel
            between processes has such memory of its own.
    """
    paces = pacer is not None and part[0] == 0
    for kind, epoch, first in passes:
        if kind.is_control:
            if paces and kind is Kind.RESTORE:
                yield Message(Kind.CHECKPOINT)
            if part[0] == 0:
                yield Message(kind, epoch)
            continue
        batches = source.batches(SPLITS[kind], epoch=epoch, batch_size=batch_size, part=part, first=first)
        for batch in batches if clock is None else _timed(batches, clock):
            if interrupted():
                break
            # Within an evaluation nothing changes: what is due then waits for its end.
            if pacer is not None and paces and not (kind.is_evaluation and batch.step) and pacer.due(part[1]):
                yield Message(Kind.CHECKPOINT)
            if tokens is not None and kind is Kind.TRAIN:
                yield from tokens.take()
            tensors = {LABELS: batch.labels, IDS: batch.ids}
            if batch.image_ids is None:
                tensors = {IMAGES: batch.images, **tensors}
            elif len(batch.image_ids):
                tensors = {IMAGES: batch.images, IMAGE_IDS: batch.image_ids, **tensors}
            if pinned:
                tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
            yield Message(kind, epoch, batch.step, batch.position, batch.last, tensors)
        if interrupted():
            break
    if interrupted():
        if pacer is not None:
            yield Message(Kind.CHECKPOINT)
        yield Message(Kind.STOP)


def _timed(batches: Iterable[Batch], clock: Clock) -> Iterator[Batch]:
    source = iter(batches)
    while True:
        with clock.measure(TimeCategory.BUSY):
            batch = next(source, None)
        if batch is None:
            return
        yield batch


class Passes:
    """Passes that come in over time. Any number of threads iterate, each over all of them, waiting for more.

    Iterations end once it is closed.
    """

    def __init__(self) -> None:
        self._given: list[Pass] = []
        self._more = threading.Condition()
        self._closed = False

    def add(self, passes: Sequence[Pass]) -> None:
        with self._more:
            self._given += passes
            self._more.notify_all()

    def close(self) -> None:
        with self._more:
            self._closed = True
            self._more.notify_all()

    def __iter__(self) -> Iterator[Pass]:
        taken = 0
        while True:
            with self._more:
                while not self._closed and taken == len(self._given):
                    self._more.wait()
                if self._closed:
                    return
                due = self._given[taken]
            taken += 1
            yield due


class BatchReceiver:
    """For a first stage without feeders: it reads its batches itself, between two steps. Implements ``Receiver``.

    The reading counts as waiting for input. ``feed`` and ``interrupt`` may be called from any thread.
    """

    def __init__(
        self,
        source: BatchSource,
        *,
        batch_size: int,
        clock: Clock,
        pacer: Pacer | None = None,
        tokens: Tokens | None = None,
        pinned: bool = False,
    ) -> None:
        self._passes, self._interrupted, self._clock = Passes(), threading.Event(), clock
        self._messages = messages(
            source,
            self._passes,
            batch_size=batch_size,
            interrupted=self._interrupted.is_set,
            pacer=pacer,
            tokens=tokens,
            pinned=pinned,
        )

    def feed(self, passes: Sequence[Pass]) -> None:
        """Has these passes follow those before."""
        self._passes.add(passes)

    def interrupt(self) -> None:
        """Has a stop come in place of the next batch, also of one that nobody has asked for yet."""
        self._interrupted.set()
        self._passes.close()

    def receive(self) -> Message:
        with self._clock.measure(TimeCategory.WAIT_IN):
            return next(self._messages, Message(Kind.STOP))

    @property
    def waiting(self) -> int:
        return 0


class MergedReceiver:
    """The feeders' channels as one: batch by batch in turn, from the first feeder again in every pass.

    Args:
        first: number of the first batch in its pass.
    """

    def __init__(self, receivers: Sequence[Receiver], *, first: int = 0) -> None:
        self._receivers = receivers
        self._turn = first % len(receivers)

    def receive(self) -> Message:
        message = self._receivers[self._turn].receive()
        if not message.kind.is_control:  # tokens come between two of a feeder's batches
            self._turn = 0 if message.last else (self._turn + 1) % len(self._receivers)
        return message

    @property
    def waiting(self) -> int:
        return sum(receiver.waiting for receiver in self._receivers)
