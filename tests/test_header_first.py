"""The transport between GPUs, without one: headers first, payloads over a second gloo group where NCCL would be.

What is posted when, and on which stream, is what decides whether a pipeline on GPUs can stop dead.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import PeerLostError
from pipeline.kind import Kind
from pipeline.spawn import Child
from pipeline.telemetry.clock import Clock
from pipeline.transport import CARRIERS, Nccl
from pipeline.transport.base import DeviceKind, Edge
from pipeline.transport.buffers import NcclBuffer
from pipeline.transport.edges import EdgeGroups
from pipeline.transport.message import HEADER_BYTES, Message, message_bytes, pack
from tests.support import CPU, End, Pair, file_store, run_pair
from tests.test_channel import NOTICE, receive_varied, same, send_varied, small, varied


class HeaderFirst(Nccl):
    """NCCL's transport as it is, over gloo between CPUs."""

    kind: ClassVar[str] = "header-first"
    devices = frozenset[DeviceKind](("cpu",))
    payloads_over = "gloo"
    auto_place = None


Call = tuple[str, str, int]
"""What was called, on which group, with how many bytes."""

calls: list[Call] = []  # of this process


def recorded() -> None:
    """Registers the transport here, and notes what is asked of torch.distributed from now on, which does it."""
    CARRIERS.register(HeaderFirst)
    for name in ("isend", "irecv", "send", "recv"):
        _record(name)
    new_group = dist.new_group

    def noted(ranks: Any, **values: Any) -> Any:
        calls.append(("new_group", values["group_desc"], 0))
        return new_group(ranks, **values)

    setattr(dist, "new_group", noted)  # noqa: B010 (mypy holds a function of another signature for a mistake)


def _record(name: str) -> None:
    real = getattr(dist, name)

    def noted(tensor: Tensor, peer: int, *, group: Any) -> Any:
        calls.append((name, group.group_desc, tensor.numel()))
        return real(tensor, peer, group=group)

    setattr(dist, name, noted)


def prepared(rank: int) -> None:
    recorded()


def pair(sending: Any, receiving: Any, **settings: Any) -> tuple[Any, Any]:
    return run_pair(sending, receiving, transport="header-first", prepare=prepared, **settings)


@pytest.mark.parametrize("depth", [1, 4])
def test_order_and_content_are_kept(depth: int) -> None:
    _, wrong = pair(partial(send_varied, count=200), partial(receive_varied, count=200), depth=depth)
    assert wrong == []


EDGE = "stage 1 → stage 2"
MESSAGES = [varied(number) for number in (0, 3, 16, 5)]  # the third is a control token


def send_messages(end: End) -> None:
    for message in MESSAGES:
        end.sender.send(message)
    end.sender.close()


def look_then_receive(end: End) -> tuple[list[Call], list[Call], bool]:
    """The calls up to the first message, those of the messages, and whether they arrived whole."""
    before = list(calls)
    calls.clear()
    wrong = [message for message in MESSAGES if not same(end.receiver.receive(), message)]
    return before, list(calls), not wrong


def test_a_payload_is_received_once_its_header_is_here_and_in_its_size() -> None:
    """Symptom: receives of the whole buffer were posted ahead, a kernel each that spun for as long as none came."""
    depth = 2
    _, (before, received, good) = pair(send_messages, look_then_receive, depth=depth)
    assert good
    posted = [call for call in before if call[0] == "irecv"]
    assert posted == [("irecv", f"{EDGE} (headers)", HEADER_BYTES)] * (depth + 1)
    last_of_set_up = max(number for number, call in enumerate(before) if call[0] in ("new_group", "send", "recv"))
    assert last_of_set_up < before.index(posted[0]), "something was posted before every connection was made"
    sizes = [size for name, group, size in received if (name, group) == ("irecv", EDGE)]
    assert sizes == [message_bytes(message) for message in MESSAGES if not message.kind.is_control]


def send_and_die(end: End) -> None:
    end.sender.send(small())
    end.tell("sent")
    end.line.poll(60)


def receive_twice(end: End) -> str:
    end.receiver.receive()
    end.tell("received")
    with pytest.raises(PeerLostError) as lost:
        end.receiver.receive()
    return str(lost.value)


def test_a_dead_sender_is_noticed_by_the_header_that_does_not_come() -> None:
    with Pair(send_and_die, receive_twice, transport="header-first", prepare=prepared) as ends:
        ends.expect(1, "received")
        ends.kill(0)
        assert "stage 1 → stage 2: the neighbour is gone" in ends.result(1, NOTICE)


# ---------------------------------------------------------------------------------------------------------------------
# Three and four stages in a row


def stage(rank: int, groups: EdgeGroups, store: Path) -> Any:
    """In a process of its own: joins its neighbours, and passes messages on when asked."""
    torch.set_num_threads(1)
    recorded()
    ends = groups.join(rank, CPU, Clock(), file_store(store, groups))
    joined = list(calls)

    def pass_on(count: int) -> tuple[list[Call], bool]:
        good = True
        for number in range(count):
            message = ends.inboxes[0].receive() if ends.inboxes else varied(number)
            good &= same(message, varied(number))
            for outbox in ends.outboxes:
                outbox.send(message)
        for outbox in ends.outboxes:
            outbox.close()
        return joined, good

    return pass_on


@pytest.mark.parametrize("num_stages", [3, 4])
def test_stages_in_a_row_make_every_connection_in_one_order_before_anything_is_posted(
    num_stages: int, tmp_path: Path
) -> None:
    """Symptom: a middle stage had receives posted on its first edge while its second one was still made."""
    edges = tuple(Edge(f"edge {n}", n, n + 1, 1 << 16, "header-first") for n in range(num_stages - 1))
    groups, store = EdgeGroups(edges, num_stages, 60.0, 1), tmp_path / "store"
    context = multiprocessing.get_context("forkserver")
    children: list[Child[int, tuple[list[Call], bool]]] = [
        Child(f"stage {rank + 1}", stage, rank, groups, store, context=context) for rank in range(num_stages)
    ]
    try:
        for child in children:
            child.send(20)
        answers = [child.receive() for child in children]
    finally:
        for child in children:
            child.close()
    assert all(good for _, good in answers)
    made = [[group for name, group, _ in joined if name == "new_group"] for joined, _ in answers]
    in_order = [name for n in range(num_stages - 1) for name in (f"edge {n} (headers)", f"edge {n}")]
    assert made == [in_order] * num_stages
    for joined, _ in answers:
        names = [name for name, _, _ in joined]
        posted = [number for number, name in enumerate(names) if name in ("isend", "irecv")]
        assert not posted or names.index("irecv") > max(n for n, name in enumerate(names) if name == "new_group")
        assert not [call for call in joined if call[0] == "irecv" and not call[1].endswith("(headers)")]


# ---------------------------------------------------------------------------------------------------------------------
# The order of a GPU's streams, by fakes that note what is asked of them


class FakeCuda:
    """torch.cuda and torch.distributed as ``NcclBuffer`` uses them. What was asked for, on which stream."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, header: Tensor | None = None) -> None:
        self.log: list[str] = []
        self.current = "compute"
        self._header = header
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: self)
        monkeypatch.setattr(torch.cuda, "stream", self._on)
        monkeypatch.setattr(dist, "isend", partial(self._post, "send"))
        monkeypatch.setattr(dist, "irecv", partial(self._post, "receive"))

    def record_event(self) -> str:
        self.log.append(f"{self.current}: event")
        return "event"

    def wait_event(self, event: str) -> None:
        self.log.append("side: waits for event")

    @contextmanager
    def _on(self, stream: object) -> Iterator[None]:
        self.current = "side"
        yield
        self.current = "compute"

    def _post(self, what: str, tensor: Tensor, peer: int, *, group: str) -> FakeWork:
        self.log.append(f"{self.current}: {what} {group} {tensor.numel()}")
        if what == "receive" and group == "headers" and self._header is not None:
            tensor.copy_(self._header)
        return FakeWork(self, group)


class FakeWork:
    def __init__(self, cuda: FakeCuda, group: str) -> None:
        self._cuda, self._group = cuda, group

    def wait(self, timeout: timedelta | None = None) -> None:
        assert (timeout is None) == (self._group == "payloads"), "a timeout on NCCL's work holds the host up"
        self._cuda.log.append(f"{self._cuda.current}: after {self._group}")


def buffer(monkeypatch: pytest.MonkeyPatch, message: Message) -> tuple[NcclBuffer, FakeCuda]:
    header = torch.zeros(HEADER_BYTES, dtype=torch.uint8)
    pack(message, header, torch.zeros(1 << 12, dtype=torch.uint8), sequence=0)
    cuda = FakeCuda(monkeypatch, header)
    made = NcclBuffer(1 << 12, 1, "payloads", "headers", CPU, stream=cuda)  # type: ignore[arg-type]
    return made, cuda


def test_a_message_travels_beside_the_work_on_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for what has read its buffer, and for nothing that was launched since; what follows waits for it."""
    receives, cuda = buffer(monkeypatch, small())
    receives.post_receive()
    cuda.log.append("compute: work on the message before")
    receives.wait_received(5)
    assert cuda.log == [
        "compute: event",
        f"compute: receive headers {HEADER_BYTES}",
        "compute: work on the message before",
        "compute: after headers",
        "side: waits for event",
        f"side: receive payloads {message_bytes(small())}",
        "compute: after payloads",
    ]


def test_a_payload_that_was_asked_for_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    receives, cuda = buffer(monkeypatch, small())
    receives.post_receive()
    for _ in range(2):
        receives.take_payload(5)
    receives.wait_received(5)
    assert len([line for line in cuda.log if "receive payloads" in line]) == 1


@pytest.mark.parametrize("sends", [True, False])
def test_a_token_takes_no_kernel(monkeypatch: pytest.MonkeyPatch, sends: bool) -> None:
    message = Message(Kind.STOP)
    made, cuda = buffer(monkeypatch, message)
    if sends:
        made.post_send(message_bytes(message))
        made.wait_sent(5)
    else:
        made.post_receive()
        made.wait_received(5)
    assert not [line for line in cuda.log if "payloads" in line]


def test_a_sender_names_the_size_that_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    made, cuda = buffer(monkeypatch, small())
    size = message_bytes(small())
    made.post_send(size)
    made.wait_sent(5)
    assert cuda.log == [
        f"compute: send headers {HEADER_BYTES}",
        f"compute: send payloads {size}",
        "compute: after headers",
        "compute: after payloads",
    ]
