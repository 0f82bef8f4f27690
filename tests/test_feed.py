"""Batches as messages: the order of the passes, several feeders as one, and a stop when interrupted."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.loader import Batch, Split
from pipeline.kind import Kind
from pipeline.runtime.feeder import IMAGES, BatchReceiver, MergedReceiver, messages
from pipeline.runtime.passes import Pass, layer_passes, readout_passes
from pipeline.telemetry.clock import Clock, TimeCategory
from pipeline.transport.message import IDS, LABELS, Message

BATCH = 2
FIRST_ID: dict[Split, int] = {"train": 0, "validate": 10**5, "test": 10**6}


class Counted:
    """A source with so many batches per split; a sample's id says its split, epoch and place."""

    def __init__(self, **num_batches: int) -> None:
        self.num_batches = num_batches
        self.asked: list[tuple[Split, int]] = []

    def batches(
        self, split: Split, *, epoch: int, batch_size: int, part: tuple[int, int], first: int = 0
    ) -> Iterable[Batch]:
        assert batch_size == BATCH
        self.asked.append((split, epoch))
        feeder, feeders = part
        count = self.num_batches[split]
        for step in (step for step in range(first, count) if step % feeders == feeder):
            ids = torch.arange(BATCH) + BATCH * step + 1000 * epoch + FIRST_ID[split]
            images = torch.full((BATCH, 1, 2, 2), step, dtype=torch.uint8)
            yield Batch(images, ids % 3, ids, position=BATCH * step, step=step, last=step == count - 1)


class Sent:
    """What a feeder sent, as a receiver that the merged one reads."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.taken = 0

    def receive(self) -> Message:
        self.taken += 1
        return self.messages[self.taken - 1]

    @property
    def waiting(self) -> int:
        return len(self.messages) - self.taken


def run_feeders(source: Counted, passes: list[Pass], feeders: int) -> list[Sent]:
    sent = [Sent() for _ in range(feeders)]
    for number, sink in enumerate(sent):
        sink.messages += messages(source, passes, batch_size=BATCH, part=(number, feeders))
    return sent


def told(message: Message) -> tuple[object, ...]:
    """All of a message, comparable."""
    tensors = {name: tensor.tolist() for name, tensor in message.tensors.items()}
    return message.kind, message.epoch, message.step, message.position, message.last, tensors


def whole_run(epochs: int = 2) -> list[Pass]:
    return [*layer_passes(range(epochs)), Pass(Kind.RESTORE, 0), *readout_passes(epochs, 1)]


def test_one_feeder_sends_every_pass_behind_the_other() -> None:
    (sent,) = run_feeders(Counted(train=3, validate=1, test=2), whole_run(), 1)
    T, V, R = Kind.TRAIN, Kind.VALIDATE, Kind.READOUT  # noqa: N806 - a table
    assert [(m.kind, m.epoch, m.step, m.last) for m in sent.messages] == [
        *[(T, 0, 0, False), (T, 0, 1, False), (T, 0, 2, True), (V, 0, 0, True)],
        *[(T, 1, 0, False), (T, 1, 1, False), (T, 1, 2, True), (V, 1, 0, True)],
        (Kind.RESTORE, 0, 0, False),
        *[(R, 2, 0, False), (R, 2, 1, False), (R, 2, 2, True)],
        *[(Kind.TEST, 0, 0, False), (Kind.TEST, 0, 1, True)],
        (Kind.STOP, 0, 0, False),
    ]


def test_readouts_draw_from_the_training_split_with_their_own_epoch() -> None:
    source = Counted(train=1, validate=1, test=1)
    run_feeders(source, whole_run(), 1)
    assert source.asked == [
        ("train", 0),
        ("validate", 0),
        ("train", 1),
        ("validate", 1),
        ("train", 2),
        ("test", 0),
    ]


def test_batch_becomes_images_labels_and_ids_at_its_position() -> None:
    (sent,) = run_feeders(Counted(train=2), [Pass(Kind.TRAIN, 3)], 1)
    message = sent.messages[1]
    assert list(message.tensors) == [IMAGES, LABELS, IDS]
    assert message.tensors[IMAGES].dtype == torch.uint8
    assert message.tensors[IDS].tolist() == [3002, 3003]
    assert message.tensors[LABELS].tolist() == [3002 % 3, 3003 % 3]
    assert (message.epoch, message.step, message.position, message.last) == (3, 1, 2, True)


def test_control_tokens_come_from_the_first_feeder_alone_and_carry_no_tensors() -> None:
    first, second, third = run_feeders(Counted(train=6, validate=3, test=3), whole_run(), 3)
    assert [m.kind for m in first.messages if not m.tensors] == [Kind.RESTORE, Kind.STOP]
    assert all(m.tensors for sent in (second, third) for m in sent.messages)


@settings(max_examples=60, deadline=None)
@given(
    feeders=st.integers(1, 5),
    train=st.integers(1, 9),
    validate=st.integers(1, 9),
    test=st.integers(1, 9),
    epochs=st.integers(1, 3),
)
def test_any_number_of_feeders_merges_to_the_order_of_one(
    feeders: int, train: int, validate: int, test: int, epochs: int
) -> None:
    source = Counted(train=train, validate=validate, test=test)
    (alone,) = run_feeders(source, whole_run(epochs), 1)
    several = run_feeders(source, whole_run(epochs), feeders)
    merged = MergedReceiver(several)
    assert [told(merged.receive()) for _ in alone.messages] == [told(message) for message in alone.messages]
    assert merged.waiting == 0, "nothing is left with any feeder"


def test_a_token_inside_a_pass_changes_nobodys_turn() -> None:
    (alone,) = run_feeders(Counted(train=6), [Pass(Kind.TRAIN, 0)], 1)
    first, second = run_feeders(Counted(train=6), [Pass(Kind.TRAIN, 0)], 2)
    first.messages.insert(1, Message(Kind.RESTORE, 3))
    merged = MergedReceiver([first, second])
    received = [merged.receive() for _ in range(7)]
    assert [m.kind for m in received].count(Kind.RESTORE) == 1
    assert [told(m) for m in received if not m.kind.is_control] == [told(m) for m in alone.messages]


def test_merged_queue_is_as_long_as_all_feeders_queues() -> None:
    merged = MergedReceiver(run_feeders(Counted(train=5), [Pass(Kind.TRAIN, 0)], 2))
    assert merged.waiting == 5
    merged.receive()
    merged.receive()
    assert merged.waiting == 3


@pytest.mark.parametrize("after", [0, 1, 3, 4])
def test_interrupt_sends_a_stop_and_nothing_after_it(after: int) -> None:
    sent: list[Message] = []
    source = Counted(train=3, validate=2, test=1)
    for message in messages(source, whole_run(), batch_size=BATCH, interrupted=lambda: len(sent) >= after):
        sent.append(message)  # noqa: PERF402 - what is sent decides when the interrupt is heard
    assert [m.kind for m in sent].count(Kind.STOP) == 1
    assert sent[-1].kind is Kind.STOP
    assert not sent[-1].tensors
    assert len(sent) == after + 1


@settings(max_examples=60, deadline=None)
@given(feeders=st.integers(1, 4), stops=st.lists(st.integers(0, 12), min_size=4, max_size=4))
def test_interrupt_of_several_feeders_at_different_moments_ends_in_a_stop(feeders: int, stops: list[int]) -> None:
    """Each feeder hears of it at its own moment; stage 1 sees the run's order up to somewhere, then a stop."""
    source, passes = Counted(train=5, validate=3, test=2), whole_run()
    (alone,) = run_feeders(source, passes, 1)
    sent = [Sent() for _ in range(feeders)]
    for number, sink in enumerate(sent):
        for message in messages(
            source,
            passes,
            batch_size=BATCH,
            part=(number, feeders),
            interrupted=lambda sink=sink, stop=stops[number]: len(sink.messages) >= stop,  # type: ignore[misc]
        ):
            sink.messages.append(message)
    merged = MergedReceiver(sent)
    received: list[Message] = []
    while not received or received[-1].kind is not Kind.STOP:
        received.append(merged.receive())
    assert [told(m) for m in received[:-1]] == [told(m) for m in alone.messages[: len(received) - 1]]


def reading(source: Counted) -> tuple[BatchReceiver, Clock]:
    clock = Clock()
    return BatchReceiver(source, batch_size=BATCH, clock=clock), clock


def test_a_stage_without_feeders_reads_the_order_of_one_feeder() -> None:
    source = Counted(train=3, validate=1, test=2)
    (alone,) = run_feeders(source, whole_run(), 1)
    receiver, clock = reading(source)
    for due in whole_run():  # passes come in over time
        receiver.feed([due])
    assert [told(receiver.receive()) for _ in alone.messages] == [told(message) for message in alone.messages]
    assert clock.read().seconds[TimeCategory.WAIT_IN] > 0, "reading is waiting for input"


def test_a_stage_without_feeders_waits_for_passes_that_come_later() -> None:
    receiver, _ = reading(Counted(train=2))
    receiver.feed([Pass(Kind.TRAIN, 0)])
    for _ in range(2):
        receiver.receive()
    got: list[Message] = []
    waiting = threading.Thread(target=lambda: got.append(receiver.receive()), daemon=True)
    waiting.start()
    receiver.feed([Pass(Kind.TRAIN, 1)])
    waiting.join(60)
    assert [(m.kind, m.epoch, m.step) for m in got] == [(Kind.TRAIN, 1, 0)]


@pytest.mark.parametrize("taken", [0, 2, 3], ids=["before the first batch", "amid a pass", "waiting for a pass"])
def test_an_interrupt_stops_a_stage_without_feeders(taken: int) -> None:
    receiver, _ = reading(Counted(train=3))
    receiver.feed([Pass(Kind.TRAIN, 0)])
    for _ in range(taken):
        receiver.receive()
    receiver.interrupt()
    assert receiver.receive().kind is Kind.STOP


def test_what_a_stage_on_a_gpu_reads_for_itself_lies_in_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """From other memory a copy to the GPU holds up the stage that starts it."""
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:  # without a GPU there is no such memory
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    receiver = BatchReceiver(Counted(train=2), batch_size=BATCH, clock=Clock(), pinned=True)
    receiver.feed([Pass(Kind.TRAIN, 0)])
    tensors = [tensor for _ in range(2) for tensor in receiver.receive().tensors.values()]
    assert len(tensors) == 6
    assert all(mine is theirs for mine, theirs in zip(tensors, pinned, strict=True))
