"""What travels between stages: a kind, where it stands in the run, and named tensors. And its form as bytes.

A frame is a header of fixed size and the tensors' bytes behind it, each aligned to 64 bytes: kernels may take
another path, with other rounding, for memory aligned otherwise, and the same bits are wanted from every transport.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipeline.errors import ChannelError
from pipeline.kind import Kind

HEADER_BYTES = 2048
ALIGNMENT = 64

LABELS = "labels"
IDS = "ids"

_MAGIC = 0x4C50_4D31  # "LPM1"
_HEAD = struct.Struct("<IBBHiqqqQ")  # magic, kind, last, tensors, epoch, step, position, sequence, payload
_ENTRY = struct.Struct("<31pBB7qQ")  # name, dtype, dimensions, shape, offset
_MAX_NAME, _MAX_DIMS = 30, 7
_MAX_TENSORS = (HEADER_BYTES - _HEAD.size) // _ENTRY.size
_DTYPES = (
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
)


@dataclass
class Message:
    """One message.

    Attributes:
        kind: what to do.
        epoch, step: position in the run; step counts batches within a pass, from 0.
        position: index of the batch's first sample in the epoch's order (keys the augmentation).
        last: the pass ends with this batch.
        tensors: named tensors; ``labels`` and ``ids`` (N,) int64 beside the activations.
    """

    kind: Kind
    epoch: int = 0
    step: int = 0
    position: int = 0
    last: bool = False
    tensors: dict[str, Tensor] = field(default_factory=dict)


def message_bytes(message: Message) -> int:
    """Payload bytes of a message; its tensors may be on the meta device."""
    return sum(_aligned(t.numel() * t.element_size()) for t in message.tensors.values())


def pack(message: Message, header: Tensor, payload: Tensor, sequence: int) -> int:
    """Writes a message into buffers (HEADER_BYTES,) and (bytes,) uint8. Returns how many payload bytes it takes.

    Raises:
        ChannelError: the message is larger than the payload buffer, or the header cannot describe a tensor.
    """
    needed = message_bytes(message)
    if needed > len(payload):
        shapes = {name: tuple(tensor.shape) for name, tensor in message.tensors.items()}
        raise ChannelError(f"a message of {needed:,} bytes does not fit the channel's {len(payload):,}: {shapes}")
    written = _header(message, sequence, needed)
    header[: len(written)].copy_(torch.frombuffer(written, dtype=torch.uint8))
    for offset, tensor in zip(_offsets(message), message.tensors.values(), strict=True):
        size = tensor.numel() * tensor.element_size()
        if size:
            target = payload[offset : offset + size].view(tensor.dtype).view(tensor.shape)
            target.copy_(tensor, non_blocking=True)
    return needed


def unpack(header: Tensor, payload: Tensor, sequence: int) -> Message:
    """Reads a message whose tensors are views of the payload: valid until the buffer is used again.

    Raises:
        ChannelError: the bytes are no message, or not the next in order.
    """
    written = bytes(header.numpy())
    magic, kind, last, count, epoch, step, position, got, size = _HEAD.unpack_from(written)
    if magic != _MAGIC:
        raise ChannelError(f"message {sequence} has no valid header: the two ends of the channel do not agree")
    if got != sequence:
        raise ChannelError(f"message {got} arrived where message {sequence} was due: one was lost or repeated")
    if size > len(payload) or count > _MAX_TENSORS:
        raise ChannelError(f"message {sequence} announces {size:,} bytes in {count} tensors: too large for the channel")
    try:
        tensors = dict(_tensor(written, i, payload[:size]) for i in range(count))
        return Message(Kind(kind), epoch, step, position, bool(last), tensors)
    except (ValueError, IndexError, RuntimeError) as error:  # no such kind or dtype, a shape that cannot be
        raise ChannelError(f"message {sequence} has a damaged header: {error}") from error


def _tensor(header: bytes, number: int, payload: Tensor) -> tuple[str, Tensor]:
    """Name and tensor that entry ``number`` of a header describes, a view of the payload."""
    name, dtype, dims, *shape, offset = _ENTRY.unpack_from(header, _HEAD.size + number * _ENTRY.size)
    element, shape = _DTYPES[dtype], shape[:dims]
    end = offset + math.prod(shape) * element.itemsize
    if dims > _MAX_DIMS or min(shape, default=0) < 0 or offset % ALIGNMENT or end > len(payload):
        raise ValueError(f"tensor {name!r} of shape {shape} does not lie within the message")
    return name.decode(), payload[offset:end].view(element).view(shape)


def sequence_of(header: Tensor) -> int:
    """The sequence number in a header, or -1 where no message has arrived yet (the bytes are zero)."""
    fields = _HEAD.unpack(bytes(header[: _HEAD.size].numpy()))
    return int(fields[7]) if fields[0] == _MAGIC else -1


def payload_size(header: Tensor) -> int:
    """Payload bytes of the message whose header has arrived. Raises ChannelError where it is none."""
    fields = _HEAD.unpack(bytes(header[: _HEAD.size].numpy()))
    if fields[0] != _MAGIC:
        raise ChannelError("a message has no valid header: the two ends of the channel do not agree")
    return int(fields[8])


def _header(message: Message, sequence: int, size: int) -> bytearray:
    if len(message.tensors) > _MAX_TENSORS:
        raise ChannelError(f"a message holds at most {_MAX_TENSORS} tensors, this one has {len(message.tensors)}")
    written = bytearray(
        _HEAD.pack(
            _MAGIC,
            message.kind,
            message.last,
            len(message.tensors),
            message.epoch,
            message.step,
            message.position,
            sequence,
            size,
        )
    )
    for offset, (name, tensor) in zip(_offsets(message), message.tensors.items(), strict=True):
        if tensor.dtype not in _DTYPES or tensor.ndim > _MAX_DIMS or len(name.encode()) > _MAX_NAME:
            raise ChannelError(f"tensor {name!r} ({tensor.dtype}, {tensor.ndim} dimensions) cannot travel")
        shape = [*tensor.shape, *[0] * (_MAX_DIMS - tensor.ndim)]
        written += _ENTRY.pack(name.encode(), _DTYPES.index(tensor.dtype), tensor.ndim, *shape, offset)
    return written


def _offsets(message: Message) -> list[int]:
    offsets, offset = [], 0
    for tensor in message.tensors.values():
        offsets.append(offset)
        offset += _aligned(tensor.numel() * tensor.element_size())
    return offsets


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
