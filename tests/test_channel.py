"""Queues between neighbours, in threads and in processes: order, bound, back-pressure, and lost neighbours."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from pipeline.errors import ChannelError, PeerLostError
from pipeline.kind import Kind
from pipeline.telemetry.clock import Clock, TimeCategory
from pipeline.transport import CARRIERS, Gloo, Transport
from pipeline.transport.channel import LocalChannel
from pipeline.transport.message import Message
from tests.support import End, Pair, run_pair

EDGE = "stage 1 → stage 2"
NOTICE = 30.0  # seconds within which a dead neighbour must be noticed, on a busy machine too
STILL = 0.25  # seconds after which a sender that has sent no further message counts as held back

_DTYPES = [torch.float32, torch.uint8, torch.int64, torch.bfloat16, torch.bool, torch.float64]


def varied(number: int) -> Message:
    """Message ``number`` of a sequence in which kind, shapes, dtypes and the number of tensors go on changing."""
    random = torch.Generator().manual_seed(number)
    if number % 17 == 16:
        return Message(Kind.RESTORE, epoch=number)
    tensors: dict[str, Tensor] = {}
    for i in range(1 + number % 4):
        shape = [1 + number % 7, number % 3, 5][: 1 + (number + i) % 3] if number % 5 else []
        tensors[f"x{i}"] = torch.randint(0, 2, shape, generator=random).to(_DTYPES[(number + i) % len(_DTYPES)])
    return Message(Kind.TRAIN, number // 10, number, 3 * number, number % 10 == 9, tensors)


def same(first: Message, second: Message) -> bool:
    return (
        (first.kind, first.epoch, first.step, first.position, first.last)
        == (second.kind, second.epoch, second.step, second.position, second.last)
        and list(first.tensors) == list(second.tensors)
        and all(
            tensor.dtype == second.tensors[name].dtype and torch.equal(tensor, second.tensors[name])
            for name, tensor in first.tensors.items()
        )
    )


def small(number: int = 0) -> Message:
    return Message(Kind.TRAIN, step=number, tensors={"x": torch.full((8,), float(number))})


def held_at(count: Callable[[], int], expected: int) -> int:
    """Waits until a count is as expected, and a while longer: what it is then."""
    timeout = time.monotonic() + 60
    while count() < expected and time.monotonic() < timeout:
        time.sleep(0.01)
    time.sleep(STILL)
    return count()


# ---------------------------------------------------------------------------------------------------------------------
# Between threads


def local(depth: int = 2, stall_timeout: float = 30.0) -> tuple[LocalChannel, Clock, Clock]:
    sender, receiver = Clock(), Clock()
    channel = LocalChannel(EDGE, depth=depth, stall_timeout=stall_timeout, sender_clock=sender, receiver_clock=receiver)
    return channel, sender, receiver


class Thread(threading.Thread):
    """A daemon thread that keeps what its work raised."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.raised: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._work()
        except PeerLostError as error:
            self.raised = error


def send_all(channel: Any, messages: Iterator[Message], sent: list[int] | None = None) -> None:
    for message in messages:
        channel.send(message)
        if sent is not None:
            sent.append(message.step)


def test_local_channel_keeps_order_and_content() -> None:
    channel, _, _ = local()
    thread = Thread(lambda: send_all(channel, map(varied, range(400))))
    wrong = [number for number in range(400) if not same(channel.receive(), varied(number))]
    thread.join(60)
    assert wrong == []


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_local_channel_buffers_depth_messages_and_no_more(depth: int) -> None:
    channel, _, _ = local(depth)
    sent: list[int] = []
    Thread(lambda: send_all(channel, map(small, range(20)), sent))
    assert held_at(lambda: len(sent), depth) == depth
    for received in range(1, 4):
        channel.receive()
        assert held_at(lambda: len(sent), received + depth) == received + depth
    channel.break_off()


def test_local_sender_waits_for_a_slow_receiver() -> None:
    channel, sender, receiver = local(depth=1)
    thread = Thread(lambda: send_all(channel, map(small, range(11))))
    for _ in range(11):
        channel.receive()
        time.sleep(0.05)
    thread.join(60)
    assert sender.read().seconds[TimeCategory.WAIT_OUT] > 0.35
    assert receiver.read().seconds[TimeCategory.WAIT_IN] < sender.read().seconds[TimeCategory.WAIT_OUT]


def test_local_receiver_waits_for_a_slow_sender() -> None:
    channel, sender, receiver = local(depth=1)

    def slowly() -> Iterator[Message]:
        for number in range(10):
            time.sleep(0.1)  # a receiver that comes late finds two of them
            yield small(number)

    Thread(lambda: send_all(channel, slowly()))
    for _ in range(10):
        channel.receive()
    assert receiver.read().seconds[TimeCategory.WAIT_IN] > 0.4
    assert sender.read().seconds[TimeCategory.WAIT_OUT] < receiver.read().seconds[TimeCategory.WAIT_IN]


def test_local_channel_counts_what_waits() -> None:
    channel, _, _ = local(depth=3)
    counts = [channel.waiting]
    for number in range(3):
        channel.send(small(number))
        counts.append(channel.waiting)
    channel.receive()
    counts.append(channel.waiting)
    assert counts == [0, 1, 2, 3, 2]


def test_local_sender_may_change_its_tensors_once_sent() -> None:
    channel, _, _ = local()
    message = small(1)
    channel.send(message)
    message.tensors["x"].zero_()
    assert same(channel.receive(), small(1))


def test_local_channel_delivers_contiguous_tensors_as_a_wire_does() -> None:
    channel, _, _ = local()
    x = torch.arange(12.0).view(3, 4).T
    channel.send(Message(Kind.TRAIN, tensors={"x": x, "y": torch.ones(1, 4).expand(3, 4)}))
    got = channel.receive().tensors
    assert torch.equal(got["x"], x)
    assert all(tensor.is_contiguous() for tensor in got.values())


def test_break_off_ends_a_waiting_receiver() -> None:
    channel, _, _ = local()
    thread = Thread(channel.receive)
    time.sleep(0.1)
    channel.break_off()
    thread.join(60)
    assert isinstance(thread.raised, PeerLostError)
    assert str(thread.raised) == f"{EDGE}: the neighbour is gone"


def test_break_off_ends_a_waiting_sender() -> None:
    channel, _, _ = local(depth=1)
    thread = Thread(lambda: send_all(channel, map(small, range(3))))
    time.sleep(0.1)
    channel.break_off()
    thread.join(60)
    assert isinstance(thread.raised, PeerLostError)
    assert str(thread.raised) == f"{EDGE}: the neighbour is gone"


def test_what_arrived_before_a_break_off_can_still_be_received() -> None:
    """A stop token sent just before an end closes is not lost."""
    channel, _, _ = local()
    channel.send(small(1))
    channel.send(Message(Kind.STOP))
    channel.break_off()
    assert same(channel.receive(), small(1))
    assert channel.receive().kind is Kind.STOP
    with pytest.raises(PeerLostError, match="is gone"):
        channel.receive()


def test_what_is_sent_last_while_the_receiver_looks_up_is_not_lost() -> None:
    """Symptom: on a busy machine a run ended with "the neighbour is gone" where its stop token had been sent: the
    receiver had found nothing, and looked whether the sender lived when that had sent it and ended."""
    channel, _, _ = local()
    get = channel._queue.get

    def interrupted(*, timeout: float) -> Message:
        try:
            return get(timeout=timeout)
        except queue.Empty:
            channel._queue.get = get  # type: ignore[method-assign]
            channel.send(Message(Kind.STOP))
            channel.break_off()
            raise

    channel._queue.get = interrupted  # type: ignore[method-assign, assignment]
    assert channel.receive().kind is Kind.STOP


def test_local_receiver_gives_up_on_silence_and_says_how_long() -> None:
    channel, _, _ = local(stall_timeout=0.3)
    begun = time.monotonic()
    with pytest.raises(PeerLostError, match=rf"{EDGE}: the neighbour sent nothing for 0\.3 s"):
        channel.receive()
    assert time.monotonic() - begun > 0.25


def test_local_sender_gives_up_on_a_receiver_that_takes_nothing() -> None:
    channel, _, _ = local(depth=1, stall_timeout=0.3)
    channel.send(small())
    with pytest.raises(PeerLostError, match=rf"{EDGE}: the neighbour took no message for 0\.3 s"):
        channel.send(small())


# ---------------------------------------------------------------------------------------------------------------------
# Between processes. What an end does is a function of this module, which its process imports.

either = pytest.mark.parametrize("transport", ["gloo", "shm"])


def send_varied(end: End, count: int) -> None:
    for number in range(count):
        end.sender.send(varied(number))
    end.sender.close()


def receive_varied(end: End, count: int) -> list[int]:
    return [number for number in range(count) if not same(end.receiver.receive(), varied(number))]


@either
@pytest.mark.parametrize("depth", [1, 4])
def test_channel_keeps_order_and_content(depth: int, transport: Transport) -> None:
    _, wrong = run_pair(
        partial(send_varied, count=400), partial(receive_varied, count=400), depth=depth, transport=transport
    )
    assert wrong == []


class Pigeon(Gloo):
    """A transport from elsewhere."""

    kind: ClassVar[str] = "pigeon"


def learn_of_pigeons(rank: int) -> None:
    CARRIERS.register(Pigeon)


def test_a_transport_that_is_registered_carries_messages() -> None:
    _, wrong = run_pair(
        partial(send_varied, count=20),
        partial(receive_varied, count=20),
        transport="pigeon",
        prepare=learn_of_pigeons,
    )
    assert wrong == []


def send_counted(end: End, count: int) -> None:
    for number in range(count):
        end.sender.send(small(number))
        end.num_sent.value = number + 1
    end.sender.close()


def receive_and_look(end: End, count: int, expected: list[int]) -> tuple[list[int], list[int]]:
    """Messages sent when the sender was held back, and those waiting: before the first receive, after it, …"""
    sent, waiting = [], []
    for number in range(count):
        if number < len(expected):
            sent.append(held_at(lambda: end.num_sent.value, expected[number]))
            waiting.append(end.receiver.waiting)
        end.receiver.receive()
    return sent, waiting


@either
@pytest.mark.parametrize("depth", [1, 3])
def test_channel_buffers_depth_messages_beside_the_one_worked_on_and_the_one_being_sent(
    depth: int, transport: Transport
) -> None:
    # Nothing is worked on before the first receive, so that buffer holds one more. One is with the sender.
    expected = [depth + 2, *[received + depth + 1 for received in (1, 2)]]
    _, (sent, waiting) = run_pair(
        partial(send_counted, count=15),
        partial(receive_and_look, count=15, expected=expected),
        depth=depth,
        transport=transport,
    )
    assert sent == expected
    assert waiting == [depth + 1, depth, depth]


def send_then_account(end: End, count: int, pause: float) -> dict[TimeCategory, float]:
    for number in range(count):
        time.sleep(pause)
        end.sender.send(small(number))
    end.sender.close()
    return end.clock.read().seconds


def receive_then_account(end: End, count: int, pause: float) -> dict[TimeCategory, float]:
    for _ in range(count):
        end.receiver.receive()
        time.sleep(pause)
    return end.clock.read().seconds


@either
def test_sender_waits_for_a_slow_receiver(transport: Transport) -> None:
    sending = partial(send_then_account, count=14, pause=0.0)
    sender, receiver = run_pair(  # a sender that is late once finds three of the pauses over
        sending, partial(receive_then_account, count=14, pause=0.1), depth=1, transport=transport
    )
    assert sender[TimeCategory.WAIT_OUT] > 0.4
    assert receiver[TimeCategory.WAIT_IN] < sender[TimeCategory.WAIT_OUT]


@either
def test_receiver_waits_for_a_slow_sender(transport: Transport) -> None:
    sending = partial(send_then_account, count=10, pause=0.1)
    sender, receiver = run_pair(  # a receiver that begins late finds four of the pauses over
        sending, partial(receive_then_account, count=10, pause=0.0), depth=1, transport=transport
    )
    assert receiver[TimeCategory.WAIT_IN] > 0.4
    assert sender[TimeCategory.WAIT_OUT] < receiver[TimeCategory.WAIT_IN]


LARGE_SHAPES = [(8 * 2**20 + 1,), (3, 5, 7, 11, 13), (), (0, 4), (2**20, 1)]


def large(number: int) -> Message:
    """More than 64 MiB of any bits at all, in shapes of all sorts."""
    random = torch.Generator().manual_seed(number)
    tensors = {
        f"x{i}": torch.randint(-(2**63), 2**63 - 1, shape, generator=random) for i, shape in enumerate(LARGE_SHAPES)
    }
    return Message(Kind.TRAIN, step=number, tensors=tensors)


def send_large(end: End) -> None:
    end.sender.send(large(1))
    end.sender.send(small(2))
    end.sender.send(large(3))
    end.sender.close()


def receive_large(end: End) -> list[bool]:
    return [same(end.receiver.receive(), expected) for expected in (large(1), small(2), large(3))]


@either
def test_channel_carries_large_and_odd_shapes_bit_by_bit(transport: Transport) -> None:
    _, right = run_pair(send_large, receive_large, depth=1, payload=80 << 20, transport=transport)
    assert right == [True, True, True]


def receive_twice(end: End) -> list[Any]:
    """A tensor when it is received, and when the next messages have arrived."""
    first = end.receiver.receive().tensors["x"]
    seen = [first.tolist()]
    held_at(lambda: end.num_sent.value, 3)
    return [*seen, first.tolist(), first.data_ptr() % 64]


@either
def test_received_tensors_are_aligned_and_stay_until_the_next_receive(transport: Transport) -> None:
    with Pair(partial(send_counted, count=10), receive_twice, depth=1, transport=transport) as pair:
        assert pair.result(1) == [[0.0] * 8, [0.0] * 8, 0]


def send_too_large(end: End) -> str:
    end.sender.send(small(0))
    try:
        end.sender.send(Message(Kind.TRAIN, tensors={"x": torch.zeros(10_000)}))
    except ChannelError as error:
        end.sender.send(small(1))
        end.sender.close()
        return str(error)
    return "sent"


def receive_two_small(end: End) -> list[bool]:
    return [same(end.receiver.receive(), small(number)) for number in range(2)]


@either
def test_message_too_large_for_the_channel_is_refused_and_the_next_one_arrives(transport: Transport) -> None:
    said, right = run_pair(send_too_large, receive_two_small, payload=4096, transport=transport)
    assert "does not fit" in said
    assert right == [True, True]


# ---------------------------------------------------------------------------------------------------------------------
# Lost neighbours


def send_some_then_sleep(end: End) -> None:
    for number in range(3):
        end.sender.send(small(number))
    end.sender.close()
    end.tell("sent")
    time.sleep(60)


def receive_until_lost(end: End) -> tuple[int, str, float]:
    """Messages received before the neighbour was lost, the error, and when."""
    received = 0
    try:
        while True:
            end.receiver.receive()
            received += 1
    except PeerLostError as error:
        return received, str(error), time.monotonic()


def send_until_lost(end: End) -> tuple[str, float]:
    try:
        for number in range(100):
            end.sender.send(small(number))
            end.num_sent.value = number + 1
            if number == 1:
                end.tell("sent")
        end.sender.close()
    except PeerLostError as error:
        return str(error), time.monotonic()
    return "all sent", time.monotonic()


def receive_three_then_until_lost(end: End) -> tuple[int, str, float]:
    for _ in range(3):
        end.receiver.receive()
    end.tell("received")
    received, said, moment = receive_until_lost(end)
    return 3 + received, said, moment


def receive_one_then_sleep(end: End) -> None:
    end.receiver.receive()
    end.tell("received")
    time.sleep(60)


@either
def test_killed_sender_becomes_an_error_at_the_receiver(transport: Transport) -> None:
    with Pair(send_some_then_sleep, receive_three_then_until_lost, transport=transport) as pair:
        pair.expect(0, "sent")
        pair.expect(1, "received")
        time.sleep(0.3)  # it waits for more
        killed = pair.kill(0)
        received, said, noticed = pair.result(1)
    assert received == 3
    assert said.startswith(f"{EDGE}: the neighbour is gone")
    assert noticed - killed < NOTICE


@either
def test_killed_receiver_becomes_an_error_at_the_sender(transport: Transport) -> None:
    with Pair(send_until_lost, receive_one_then_sleep, transport=transport) as pair:
        pair.expect(0, "sent")
        pair.expect(1, "received")
        time.sleep(0.3)  # the queue is full and the sender waits
        killed = pair.kill(1)
        said, noticed = pair.result(0)
    assert said.startswith(f"{EDGE}: the neighbour is gone")
    assert noticed - killed < NOTICE


def send_after_a_while(end: End) -> tuple[str, float]:
    end.sender.send(small(0))
    end.sender.close()
    end.tell("sent")
    time.sleep(1.0)  # the neighbour dies meanwhile
    return send_until_lost(end)


@either
def test_killed_receiver_becomes_an_error_at_a_sender_that_was_at_work(transport: Transport) -> None:
    with Pair(send_after_a_while, receive_one_then_sleep, transport=transport) as pair:
        pair.expect(0, "sent")
        pair.expect(1, "received")
        killed = pair.kill(1)
        said, noticed = pair.result(0)
    assert said.startswith(f"{EDGE}: the neighbour is gone")
    assert noticed - killed < NOTICE


def receive_after_a_while(end: End) -> tuple[int, str, float]:
    end.receiver.receive()
    end.tell("received")
    time.sleep(1.0)
    received, said, moment = receive_until_lost(end)
    return received + 1, said, moment


@either
def test_killed_sender_becomes_an_error_at_a_receiver_that_was_at_work_after_what_had_arrived(
    transport: Transport,
) -> None:
    with Pair(send_some_then_sleep, receive_after_a_while, transport=transport) as pair:
        pair.expect(0, "sent")
        pair.expect(1, "received")
        killed = pair.kill(0)
        received, said, noticed = pair.result(1)
    assert received >= 1
    assert said.startswith(f"{EDGE}: the neighbour is gone")
    assert noticed - killed < NOTICE


def send_two_then_break_off(end: End) -> str:
    for number in range(2):
        end.sender.send(small(number))
    end.sender.close()
    time.sleep(0.3)  # the neighbour has taken them and waits for more
    end.ends.break_off()
    with pytest.raises(PeerLostError) as here:
        end.sender.send(small(2))
    return str(here.value)


def receive_one_then_break_off(end: End) -> str:
    end.receiver.receive()
    time.sleep(0.3)  # the queue is full and the neighbour waits
    end.ends.break_off()
    with pytest.raises(PeerLostError) as here:
        end.receiver.receive()
    return str(here.value)


@either
@pytest.mark.parametrize(
    ("sending", "receiving", "breaks_off"),
    [(send_two_then_break_off, receive_until_lost, 0), (send_until_lost, receive_one_then_break_off, 1)],
)
def test_an_end_that_breaks_off_is_an_error_at_the_other_one_though_its_process_lives_on(
    sending: Callable[[End], Any], receiving: Callable[[End], Any], breaks_off: int, transport: Transport
) -> None:
    """Symptom: gloo's connections outlived the channel, and a healthy neighbour waited for the whole stall timeout."""
    with Pair(sending, receiving, transport=transport) as pair:
        if breaks_off == 1:
            pair.expect(0, "sent")
        here = pair.result(breaks_off)
        there = pair.result(1 - breaks_off)
    assert here.startswith(f"{EDGE}: ") and here.removesuffix(")").endswith("broken off at this end")
    assert next(said for said in there if isinstance(said, str)).startswith(f"{EDGE}: the neighbour is gone")


def wait_out(_: End) -> None:
    time.sleep(60)


@either
def test_receiver_gives_up_on_silence_and_says_how_long(transport: Transport) -> None:
    with Pair(wait_out, receive_until_lost, stall_timeout=1.5, transport=transport) as pair:
        received, said, _ = pair.result(1)
    assert (received, said) == (0, f"{EDGE}: the neighbour sent nothing for 1.5 s")


@either
def test_sender_gives_up_on_a_receiver_that_takes_nothing(transport: Transport) -> None:
    with Pair(send_until_lost, wait_out, stall_timeout=1.5, transport=transport) as pair:
        pair.expect(0, "sent")
        said, _ = pair.result(0)
    assert said == f"{EDGE}: the neighbour took no message for 1.5 s"


@either
def test_silence_shorter_than_the_limit_loses_nobody(transport: Transport) -> None:
    sending = partial(send_then_account, count=3, pause=0.6)
    _, seconds = run_pair(
        sending, partial(receive_then_account, count=3, pause=0.0), stall_timeout=20.0, transport=transport
    )
    assert seconds[TimeCategory.WAIT_IN] > 1.0
