"""The head of the pipeline: batches of images as messages, in the order of the run's passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from pipeline.channel import Receiver
from pipeline.data.loader import Batch, Split
from pipeline.messages import IDS, LABELS, Kind, Message
from pipeline.schedule import Pass

IMAGES = "images"

_SPLITS: dict[Kind, Split] = {
    Kind.TRAIN: "train",
    Kind.READOUT: "train",
    Kind.VALIDATE: "validate",
    Kind.TEST: "test",
}


class Source(Protocol):
    """Where batches come from, such as ``pipeline.data.loader.Dataset``."""

    def batches(self, split: Split, *, epoch: int, batch_size: int, part: tuple[int, int]) -> Iterable[Batch]: ...


def feed(
    source: Source,
    passes: Iterable[Pass],
    send: Callable[[Message], None],
    *,
    batch_size: int,
    part: tuple[int, int] = (0, 1),
    interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """Sends the batches of all passes, one pass behind the other without a pause; control tokens come from feeder 0.

    Args:
        part: (f, F): the share of feeder f of F; every F-th batch.
        interrupted: looked at before each batch; once true, a stop is sent and nothing after it.
    """
    for kind, epoch in passes:
        if kind not in _SPLITS:
            if part[0] == 0:
                send(Message(kind, epoch))
            continue
        for batch in source.batches(_SPLITS[kind], epoch=epoch, batch_size=batch_size, part=part):
            if interrupted():
                send(Message(Kind.STOP))
                return
            tensors = {IMAGES: batch.images, LABELS: batch.labels, IDS: batch.ids}
            send(Message(kind, epoch, batch.step, batch.position, batch.last, tensors))


class MergedReceiver:
    """The feeders' channels as one: batch by batch in turn, from the first feeder again in every pass."""

    def __init__(self, receivers: Sequence[Receiver]) -> None:
        self._receivers = receivers
        self._turn = 0

    def receive(self) -> Message:
        message = self._receivers[self._turn].receive()
        ends_pass = message.last or not message.tensors
        self._turn = 0 if ends_pass else (self._turn + 1) % len(self._receivers)
        return message

    @property
    def waiting(self) -> int:
        return sum(receiver.waiting for receiver in self._receivers)
