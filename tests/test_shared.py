"""Shared memory between neighbours: found by those who may, never written while it is read, gone with its processes."""

from __future__ import annotations

import gc
import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch

from pipeline.config.settings import Settings
from pipeline.kind import Kind
from pipeline.runtime.controller import control
from pipeline.telemetry.clock import Clock
from pipeline.transport import Transport, shared_memory
from pipeline.transport.message import Message
from pipeline.transport.shared_memory import NOWHERE, Address, Offer, SharedReceiver, SharedSender, attach, create_offer
from tests.conftest import make_run
from tests.support import End, Pair, run_pair
from tests.test_equality import assert_same, serial
from workers.group import RayWorkers

PAYLOAD = 1 << 17
BYTES = 100_000


# ---------------------------------------------------------------------------------------------------------------------
# Both ends in one process


def offer(depth: int = 1) -> Offer:
    made = create_offer(PAYLOAD, depth)
    assert made is not None
    return made


def look(address: Address, depth: int = 1) -> SharedReceiver | None:
    return attach(Address.unpack(address.pack()), "stage 1 → stage 2", PAYLOAD, depth, stall_timeout=5.0, clock=Clock())


def both_ends(depth: int = 1) -> tuple[SharedSender, SharedReceiver]:
    made = offer(depth)
    receiver = look(made.address, depth)
    assert receiver is not None
    return made.accept("stage 1 → stage 2", stall_timeout=5.0, clock=Clock()), receiver


def test_as_many_messages_wait_as_room_was_made_for() -> None:
    """More than fit a pipe as it comes: nobody has received one, and the sender never waits."""
    made = offer(depth=60)
    assert made.make_room(60)
    receiver = look(made.address, depth=60)
    assert receiver is not None
    sender = made.accept("stage 1 → stage 2", stall_timeout=0.0, clock=Clock())
    for step in range(61):
        sender.send(Message(Kind.TRAIN, step=step))
    assert [receiver.receive().step for _ in range(61)] == list(range(61))


def pieces() -> tuple[int, set[str]]:
    """How many mappings there are of ours, and what memory and pipes are open in this process. Its other threads, such
    as Ray's, open and close files and sockets meanwhile."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text().count("memfd:localpipe-")
    open_files = set()
    for file in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed while we looked
            open_files.add(os.readlink(file))
    return maps, {name for name in open_files if name.startswith(("/memfd:localpipe-", "pipe:"))}


def test_received_tensors_lie_in_the_senders_slots_and_are_aligned() -> None:
    sender, receiver = both_ends(depth=2)
    places = []
    for number in range(8):
        sender.send(noise(number))
        tensor = receiver.receive().tensors["x"]
        assert torch.equal(tensor, noise(number).tensors["x"])
        places.append(tensor.data_ptr())
    assert all(place % 64 == 0 for place in places)
    assert len(set(places)) == 4  # depth + 2 slots take turns
    assert places[:4] == places[4:]


def test_an_offer_that_ended_or_is_another_files_is_not_found() -> None:
    made = offer()
    with open(os.devnull, "rb") as other:
        assert look(replace(made.address, memory=other.fileno())) is None
    assert look(replace(made.address, token=bytes(16))) is None
    assert look(NOWHERE) is None
    made.close()
    assert look(made.address) is None


def test_nothing_stays_once_both_ends_are_let_go() -> None:
    before = pieces()
    sender, receiver = both_ends()
    sender.send(noise(1))
    view = receiver.receive().tensors["x"][10:20]
    del sender, receiver
    assert pieces()[0] == before[0] + 1  # a tensor that was received keeps its memory
    assert torch.equal(view, noise(1).tensors["x"][10:20])
    del view
    assert pieces() == before


# ---------------------------------------------------------------------------------------------------------------------
# Between two processes


def noise(number: int) -> Message:
    random = torch.Generator().manual_seed(number)
    return Message(Kind.TRAIN, step=number, tensors={"x": torch.randint(0, 256, (BYTES,), generator=random).byte()})


def checksum(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def send_noise(end: End, count: int) -> list[str]:
    sent = []
    for number in range(count):
        message = noise(number)
        sent.append(checksum(message.tensors["x"]))
        end.sender.send(message)
        message.tensors["x"].zero_()  # a sender may use its tensors again at once
        end.num_sent.value = number + 1
    end.sender.close()
    return sent


def read_slowly(end: End, count: int, ahead: int) -> list[list[str]]:
    """Each message's checksum as it arrives, and again once the sender has written all that it is let."""
    seen = []
    for number in range(count):
        tensor = end.receiver.receive().tensors["x"]
        first = checksum(tensor)
        timeout = time.monotonic() + 60
        while end.num_sent.value < min(number + 1 + ahead, count) and time.monotonic() < timeout:
            time.sleep(0.002)
        time.sleep(0.02)
        seen.append([first, checksum(tensor)])
    return seen


@pytest.mark.parametrize("depth", [1, 2])
def test_no_slot_is_written_while_the_receiver_reads_it(depth: int) -> None:
    """The sender is as far ahead as it can be, through many rounds of the ring, whenever a message is read again."""
    count = 6 * (depth + 2)
    sent, seen = run_pair(
        partial(send_noise, count=count),
        partial(read_slowly, count=count, ahead=depth + 1),
        depth=depth,
        payload=PAYLOAD,
        transport="shm",
    )
    assert seen == [[checksum, checksum] for checksum in sent]


def send_one(end: End) -> str:
    end.sender.send(noise(1))
    end.sender.close()
    return type(end.sender).__name__


def receive_one(end: End) -> tuple[str, bool]:
    same = torch.equal(end.receiver.receive().tensors["x"], noise(1).tensors["x"])
    return type(end.receiver).__name__, same


def no_processes_seen(rank: int) -> None:
    """The receiver is as if on another machine: the sender's process is none of those that it sees."""
    if rank == 1:
        pytest.MonkeyPatch().setattr(shared_memory, "PROCESSES", Path("/nowhere"))


def no_memfd(rank: int) -> None:
    """The sender is as if on a system that has no memfd."""
    if rank == 0:
        pytest.MonkeyPatch().setattr(shared_memory, "sys", SimpleNamespace(platform="darwin"))


def test_auto_takes_shared_memory_within_a_machine() -> None:
    sender, receiver = run_pair(send_one, receive_one, payload=PAYLOAD, transport="auto")
    assert sender == "SharedSender"
    assert receiver == ("SharedReceiver", True)


@pytest.mark.parametrize("elsewhere", [no_processes_seen, no_memfd])
def test_auto_takes_gloo_where_no_memory_is_shared(elsewhere: Callable[[int], None]) -> None:
    sender, receiver = run_pair(send_one, receive_one, payload=PAYLOAD, transport="auto", prepare=elsewhere)
    assert sender == "DistSender"
    assert receiver == ("DistReceiver", True)


def test_shm_where_no_memory_is_shared_is_refused_by_both_ends() -> None:
    with Pair(send_one, receive_one, transport="shm", prepare=no_processes_seen) as pair:
        for rank in (0, 1):
            with pytest.raises(AssertionError, match=r"ResourcesError: stage 1 → stage 2: `transport` shm needs"):
                pair.result(rank)


# ---------------------------------------------------------------------------------------------------------------------
# In a run


@pytest.mark.parametrize(
    ("transport", "mapped"), [("auto", [2, 1]), pytest.param("gloo", [0, 0], marks=pytest.mark.exhaustive)]
)
def test_runs_give_the_serial_bits_with_and_without_shared_memory(
    small_settings: Settings, cluster: None, transport: Transport, mapped: list[int]
) -> None:
    """``mapped``: pieces of memory that each of two stages shares, with the feeder and with each other."""
    pipe = replace(small_settings.pipeline, executor="ray", transport=transport)
    spec, _ = make_run(replace(small_settings, pipeline=pipe), stages=2)
    with RayWorkers(spec) as group:
        stages = group._crew.stages.values()
        maps = ray.get([stage.__ray_call__.remote(lambda _: Path("/proc/self/maps").read_text()) for stage in stages])
        result = control(spec, group)
    assert [text.count("memfd:localpipe-") for text in maps] == mapped
    assert_same(result, serial(small_settings))
