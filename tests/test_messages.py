"""Messages as bytes: every tensor comes back bit by bit and aligned, and bytes that are no message are refused."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.errors import ChannelError
from pipeline.kind import Kind
from pipeline.transport.message import (
    ALIGNMENT,
    HEADER_BYTES,
    IDS,
    LABELS,
    Message,
    message_bytes,
    pack,
    sequence_of,
    unpack,
)

DTYPES = [
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.bool,
]
MOST_TENSORS = 20  # that a header of 2048 bytes can describe


def buffers(payload: int) -> tuple[Tensor, Tensor]:
    """A header and a payload in one aligned frame, full of what a message before has left."""
    frame = torch.full((HEADER_BYTES + payload,), 0xA5, dtype=torch.uint8)
    assert frame.data_ptr() % ALIGNMENT == 0, "torch's own memory is aligned"
    return frame[:HEADER_BYTES], frame[HEADER_BYTES:]


def any_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """A tensor of any bits at all, NaNs and denormals among them."""
    random = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.randint(2, shape, generator=random, dtype=torch.uint8).bool()
    count = torch.Size(shape).numel() * dtype.itemsize
    return torch.randint(256, (count,), generator=random, dtype=torch.uint8).view(dtype).view(shape)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def there_and_back(message: Message, sequence: int = 0, spare: int = 0) -> Message:
    header, payload = buffers(message_bytes(message) + spare)
    assert pack(message, header, payload, sequence) == message_bytes(message)
    return unpack(header, payload, sequence)


def assert_same(got: Message, sent: Message) -> None:
    assert got.kind is sent.kind
    assert (got.epoch, got.step, got.position, got.last) == (sent.epoch, sent.step, sent.position, sent.last)
    assert list(got.tensors) == list(sent.tensors), "names in order"
    for name, tensor in sent.tensors.items():
        arrived = got.tensors[name]
        assert arrived.dtype == tensor.dtype
        assert arrived.shape == tensor.shape
        assert bits(arrived) == bits(tensor)


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30).filter(
    lambda name: len(name.encode()) <= 30 and not name.endswith("\0")
)
shapes = st.lists(st.integers(0, 5), max_size=7).map(tuple)
described = st.tuples(shapes, st.sampled_from(DTYPES), st.integers(0, 2**31))


@st.composite
def messages(draw: st.DrawFn) -> Message:
    tensors = draw(st.dictionaries(names, described, max_size=MOST_TENSORS))
    return Message(
        kind=draw(st.sampled_from(Kind)),
        epoch=draw(st.integers(-1, 2**31 - 1)),
        step=draw(st.integers(-1, 2**63 - 1)),
        position=draw(st.integers(-1, 2**63 - 1)),
        last=draw(st.booleans()),
        tensors={name: any_bits(*description) for name, description in tensors.items()},
    )


@settings(max_examples=120, deadline=None)
@given(message=messages(), sequence=st.integers(0, 2**63 - 1), spare=st.integers(0, 100))
def test_any_message_comes_back_bit_by_bit(message: Message, sequence: int, spare: int) -> None:
    assert_same(there_and_back(message, sequence, spare), message)


@settings(max_examples=60, deadline=None)
@given(message=messages())
def test_every_tensor_of_a_message_is_aligned(message: Message) -> None:
    for tensor in there_and_back(message).tensors.values():
        assert tensor.data_ptr() % ALIGNMENT == 0 or tensor.numel() == 0
        assert tensor.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (7, 5, 3), (2,) * 7, (257,)])
def test_every_dtype_comes_back_in_any_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    message = Message(Kind.TRAIN, tensors={"x": any_bits(shape, dtype, 1), "y": any_bits((3,), dtype, 2)})
    assert_same(there_and_back(message), message)


def test_batch_comes_back_with_its_place_in_the_run() -> None:
    tensors = {"x": torch.randn(4, 3), LABELS: torch.arange(4), IDS: torch.arange(4) + 10}
    message = Message(Kind.VALIDATE, epoch=3, step=70_000, position=2**40, last=True, tensors=tensors)
    assert_same(there_and_back(message, sequence=9), message)


@pytest.mark.parametrize("kind", Kind)
def test_control_token_takes_no_payload(kind: Kind) -> None:
    header, payload = buffers(0)
    assert pack(Message(kind, 4), header, payload, 1) == 0
    assert_same(unpack(header, payload, 1), Message(kind, 4))


def test_strided_tensor_arrives_contiguous() -> None:
    strided = torch.arange(24.0).view(4, 6).T[::2]
    arrived = there_and_back(Message(Kind.TRAIN, tensors={"x": strided})).tensors["x"]
    assert arrived.is_contiguous()
    assert torch.equal(arrived, strided)


def test_received_tensors_are_views_of_the_buffer_and_sent_ones_are_not() -> None:
    x = torch.zeros(4)
    header, payload = buffers(64)
    pack(Message(Kind.TRAIN, tensors={"x": x}), header, payload, 0)
    x.fill_(1)
    arrived = unpack(header, payload, 0).tensors["x"]
    assert torch.equal(arrived, torch.zeros(4)), "the sender may change its tensor once it is packed"
    payload.zero_()
    payload[:4] = torch.tensor([1.0]).view(torch.uint8)
    assert arrived.tolist() == [1, 0, 0, 0], "nothing is copied on the receiving side"


def test_bytes_of_a_message_are_known_from_shapes_alone() -> None:
    shapes = {"x": torch.empty(5, 7, device="meta"), "flag": torch.empty((), dtype=torch.bool, device="meta")}
    assert message_bytes(Message(Kind.TRAIN, tensors=shapes)) == 192 + 64  # 140 and 1, each rounded up to 64


def test_message_that_is_too_large_names_its_shapes_and_leaves_the_buffer_alone() -> None:
    header, payload = buffers(127)
    message = Message(Kind.TRAIN, tensors={"x": torch.zeros(33)})
    with pytest.raises(ChannelError, match=r"192 bytes.*127.*'x': \(33,\)"):
        pack(message, header, payload, 0)
    assert (header == 0xA5).all()


def test_message_fills_its_buffer_to_the_last_byte() -> None:
    message = Message(Kind.TRAIN, tensors={"x": torch.randn(32)})
    header, payload = buffers(128)
    pack(message, header, payload, 0)
    assert_same(unpack(header, payload, 0), message)


def test_more_tensors_than_a_header_describes_are_refused() -> None:
    message = Message(Kind.TRAIN, tensors={str(i): torch.zeros(1) for i in range(MOST_TENSORS)})
    assert_same(there_and_back(message), message)
    message.tensors["one too many"] = torch.zeros(1)
    with pytest.raises(ChannelError, match=rf"at most {MOST_TENSORS} tensors, this one has {MOST_TENSORS + 1}"):
        there_and_back(message)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("n" * 31, torch.zeros(1)),
        ("é" * 16, torch.zeros(1)),  # 16 characters, 32 bytes
        ("complex", torch.zeros(1, dtype=torch.complex64)),
        ("deep", torch.zeros((1,) * 8)),
    ],
)
def test_tensor_that_a_header_cannot_describe_is_refused_by_name(name: str, tensor: Tensor) -> None:
    with pytest.raises(ChannelError, match=f"{name}.*cannot travel"):
        there_and_back(Message(Kind.TRAIN, tensors={name: tensor}))


def test_longest_name_travels() -> None:
    message = Message(Kind.TRAIN, tensors={"n" * 30: torch.ones(2)})
    assert_same(there_and_back(message), message)


@pytest.mark.parametrize("due", [0, 2, 5])
def test_message_out_of_order_names_both_numbers(due: int) -> None:
    header, payload = buffers(0)
    pack(Message(Kind.STOP), header, payload, 3)
    with pytest.raises(ChannelError, match=f"message 3 arrived where message {due} was due"):
        unpack(header, payload, due)


def test_header_of_other_bytes_is_no_message() -> None:
    header, payload = buffers(64)
    with pytest.raises(ChannelError, match="message 6 has no valid header"):
        unpack(header, payload, 6)


def test_sequence_is_read_off_a_header_once_it_has_arrived() -> None:
    header, payload = buffers(0)
    header.zero_()
    assert sequence_of(header) == -1
    pack(Message(Kind.STOP), header, payload, 12)
    assert sequence_of(header) == 12


# A header's fields, as its layout is documented: magic, kind, last, tensors, epoch, step, position, sequence, payload;
# then for each tensor its name, dtype, dimensions, shape and offset.
HEAD = {"kind": (4, "<B"), "tensors": (6, "<H"), "payload": (36, "<Q")}
ENTRY = {"name": (44, "<B"), "dtype": (75, "<B"), "dims": (76, "<B"), "size": (77, "<q"), "offset": (133, "<Q")}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", 0),
        ("kind", 99),
        ("tensors", 21),
        ("tensors", 65_535),
        ("payload", 2**40),
        ("payload", 8),
        ("dtype", 10),
        ("dtype", 255),
        ("dims", 8),
        ("dims", 255),
        ("size", 17),
        ("size", -4),
        ("size", 2**62),
        ("offset", 64),
        ("offset", 1),
        ("offset", 2**63),
    ],
)
def test_header_with_a_damaged_field_is_refused(field: str, value: int) -> None:
    header, payload = buffers(64)
    pack(Message(Kind.TRAIN, tensors={"x": torch.ones(16)}), header, payload, 0)
    place, form = {**HEAD, **ENTRY}[field]
    damage = struct.pack(form, value)
    header[place : place + len(damage)] = torch.tensor(list(damage), dtype=torch.uint8)
    with pytest.raises(ChannelError, match="message 0"):
        unpack(header, payload, 0)


@settings(max_examples=300, deadline=None)
@given(damage=st.dictionaries(st.integers(0, 44 + 2 * 97 - 1), st.integers(0, 255), min_size=1, max_size=6))
def test_damaged_header_is_a_message_or_a_channel_error_and_nothing_else(damage: dict[int, int]) -> None:
    header, payload = buffers(256)
    tensors: dict[str, Any] = {"x": torch.ones(4, 4), LABELS: torch.arange(4)}
    pack(Message(Kind.TRAIN, tensors=tensors), header, payload, 0)
    for place, value in damage.items():
        header[place] = value
    try:
        message = unpack(header, payload, 0)
    except ChannelError:
        return
    assert isinstance(message.kind, Kind)
    start, end = payload.data_ptr(), payload.data_ptr() + len(payload)
    for tensor in message.tensors.values():
        assert start <= tensor.data_ptr() <= tensor.data_ptr() + tensor.nbytes <= end or tensor.numel() == 0
