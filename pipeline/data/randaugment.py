"""RandAugment for a batch of uint8 images, every sample with operations of its own.

Operations and magnitudes are torchvision's (``transforms.RandAugment``: 14 operations, 31 bins, nearest interpolation,
fill 0). The arithmetic is Pillow's, which torchvision applies to decoded images, so that the results are Pillow's bits
on any device and in any batch.

Which sample gets which operation is decided on the host. In each round the samples of one operation are put side by
side. One gather moves the pixels of all geometric operations; one look-up changes those of all others, which differ
only in the table of 256 entries that a pixel is looked up in (``pipeline.data.pixel_tables``). So a round is some 35
kernels on a GPU, however large the batch and whatever was drawn; nothing is read back and nothing waits.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data import pixel_tables
from pipeline.data.geometry import GEOMETRIC, sources
from pipeline.data.pixel_tables import LEVELS

# An operation's number is its index here.
OPS: Final = (
    "Identity",
    *GEOMETRIC,
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
# How a round puts its samples side by side: what operations have in common is done to one slice.
_ORDER: Final = (
    "Identity",
    *GEOMETRIC,
    "Brightness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
    "Contrast",
    "Color",
    "Sharpness",
)
_PLACES: Final = np.array([_ORDER.index(op) for op in OPS])
# By place and sign, the first of the tables that are there from the start; of blends that towards base 0.
_FIRST_TABLES: Final = np.array(
    [
        {"Posterize": (pixel_tables.POSTERIZED,) * 2, "Solarize": (pixel_tables.SOLARIZED,) * 2}.get(op, (0, LEVELS))
        for op in _ORDER
    ]
)


class RandAugment:
    """``num_ops`` rounds of an operation drawn uniformly, with replacement, for each sample.

    ``magnitude`` is a bin from 0 (nothing) to 30. A signed operation (geometry, brightness, colour, contrast,
    sharpness) goes either way with probability 1/2.
    """

    def __init__(self, *, num_ops: int, magnitude: int, device: torch.device) -> None:
        self.num_ops = num_ops
        self._magnitude = magnitude
        self._device = device
        self._fixed = pixel_tables.fixed_tables(magnitude).to(device)
        self._levels = torch.arange(LEVELS, dtype=torch.uint8, device=device)
        self._float_levels = self._levels.double()
        # Luma as Pillow's ``convert("L")``, 16-bit fixed point.
        self._luma = torch.tensor([[19595], [38470], [7471]], dtype=torch.int32, device=device)
        # Sums of weights 13, divided by 13 and rounded. No thirteenth lies on a half.
        self._thirteenths = ((torch.arange(13 * LEVELS, dtype=torch.int32) + 6) // 13).to(device)
        self._darker = pixel_tables.darker_by_sorting if device.type == "cuda" else pixel_tables.darker_by_counting
        self._size_tables: dict[tuple[int, int], _SizeTables] = {}

    @property
    def num_draws(self) -> int:
        """Uniform numbers that ``__call__`` needs for one sample: an operation and a sign for each round."""
        return 2 * self.num_ops

    def __call__(self, images: Tensor, draws: NDArray[np.float64]) -> Tensor:
        """Images (N, C, H, W) uint8 with C = 1 or 3, draws (V·N, num_draws) in [0, 1) → (V·N, C, H, W) uint8."""
        ops = (draws[:, 0::2] * len(OPS)).astype(np.int64)
        return self.apply(images, ops, draws[:, 1::2] < 0.5)

    def apply(self, images: Tensor, ops: NDArray[np.int64], negative: NDArray[np.bool_]) -> Tensor:
        """Apply operation ``ops[n, r]``, an index into OPS, with sign ``negative[n, r]`` to sample n in round r.

        Images (N, C, H, W) uint8 on the device with C = 1 or 3, ops and negative (V·N, R) → (V·N, C, H, W) uint8: V
        views of all images, one behind the other.
        """
        num_images, channels, height, width = images.shape
        plan = _Plan(ops, negative, num_images=num_images, channels=channels)
        orders, offsets, variants = send(plan.numbers, self._device).split(plan.sizes)
        orders, offsets = orders.view(-1, len(ops)), offsets.view(-1, channels, len(ops))
        of_size = self._tables_of(height, width)
        moves = of_size.sources.index_select(0, variants).split(plan.num_moved)
        inside = of_size.inside.index_select(0, variants).split(plan.num_moved)
        tables = torch.empty(plan.num_tables * LEVELS, dtype=torch.uint8, device=self._device)
        tables[: len(self._fixed)].copy_(self._fixed)
        for r, bounds in enumerate(plan.bounds):
            images = images.index_select(0, orders[r])
            moved, changed = bounds.of(GEOMETRIC[0], GEOMETRIC[-1]), bounds.of("Brightness", "Sharpness")
            if plan.num_moved[r]:
                _move(images[moved].flatten(2), moves[r], inside[r])
            if _count(changed):
                own_offsets = offsets[r].T[changed, :, None]  # (n, C, 1)
                self._change(images[changed], own_offsets, tables, bounds.behind(changed.start), of_size.of_channels)
        return images.index_select(0, orders[-1])

    def _change(self, images: Tensor, offsets: Tensor, tables: Tensor, bounds: _Bounds, parameters: Tensor) -> None:
        """Looks up every pixel in its table, in place: images (n, C, H, W).

        ``offsets`` (n, C, 1) int32 is where in ``tables`` the table of a channel begins; of blends that towards base 0,
        and to it comes the pixel's base. ``parameters``: ``pixel_tables.channel_tables``.
        """
        pixels = images.flatten(2)
        of_channels = bounds.of("AutoContrast", "Equalize")
        if _count(of_channels):
            own = self._channel_tables(pixels[of_channels], _count(bounds.of("Equalize")), parameters)
            tables[len(self._fixed) :][: own.numel()].copy_(own.view(-1))
        index = pixels + offsets
        contrast, color, sharpness = map(bounds.of, ("Contrast", "Color", "Sharpness"))
        if _count(bounds.of("Contrast", "Color")):
            gray = self._gray(pixels[bounds.of("Contrast", "Color")])
            index[contrast].add_(_rounded_mean(gray[: _count(contrast)]), alpha=LEVELS)
            index[color].add_(gray[_count(contrast) :], alpha=LEVELS)
        if _count(sharpness):
            index[sharpness].add_(self._smooth(images[sharpness]).flatten(2), alpha=LEVELS)
        torch.index_select(tables, 0, index.flatten(), out=pixels.view(-1))

    def _channel_tables(self, pixels: Tensor, num_equalized: int, parameters: Tensor) -> Tensor:
        """AutoContrast's table for each channel of these pixels (n, C, HW), Equalize's for the last ``num_equalized``
        images: (n, C, 256) float64, still to be cut off."""
        num_images, channels, _ = pixels.shape
        equalized = slice(num_images - num_equalized, num_images)
        low, high = torch.aminmax(pixels, dim=2, keepdim=True)
        high = high.long()
        row = torch.add(low, high, alpha=LEVELS)
        if num_equalized:
            darker = self._darker(pixels[equalized], self._levels)
            torch.add(darker.gather(2, high[equalized]), LEVELS * LEVELS, out=row[equalized])
        scale, offset, weight = parameters.index_select(0, row.flatten()).view(num_images, channels, 3).split(1, dim=2)
        table: Tensor = (self._float_levels * scale).add_(offset)
        if num_equalized:
            table[equalized].addcmul_(darker, weight[equalized])
        return table.clamp_(0.0, 255.0)

    def _gray(self, pixels: Tensor) -> Tensor:
        """(n, 3 or 1, HW) uint8 → (n, 1, HW) uint8 or int32."""
        if pixels.shape[1] == 1:
            return pixels
        gray = (pixels * self._luma).sum(dim=1, keepdim=True, dtype=torch.int32).add_(0x8000)
        return torch.bitwise_right_shift(gray, 16, out=gray)

    def _smooth(self, images: Tensor) -> Tensor:
        """Pillow's SMOOTH: 3×3 of ones with 5 in the middle, over 13; the border stays. (n, C, H, W) uint8 → int32."""
        smooth = images.int()
        if min(images.shape[2:]) >= 3:
            inner = smooth[:, :, 1:-1, 1:-1]
            down = smooth.unfold(2, 3, 1).sum(dim=-1, dtype=torch.int32)
            total = (down[..., :-2] + down[..., 1:-1]).add_(down[..., 2:]).add_(inner, alpha=4)
            inner.copy_(self._thirteenths.index_select(0, total.flatten()).view_as(total))
        return smooth

    def _tables_of(self, height: int, width: int) -> _SizeTables:
        size = (height, width)
        if size not in self._size_tables:
            source = torch.from_numpy(sources(height, width, self._magnitude)).to(self._device)
            channels = torch.from_numpy(pixel_tables.channel_tables(height * width)).to(self._device)
            self._size_tables[size] = _SizeTables(source.clamp(min=0), (source >= 0).to(torch.uint8), channels)
        return self._size_tables[size]


class _SizeTables(NamedTuple):
    """Tables for images of one size."""

    sources: Tensor
    """(10, HW) int64: for each geometric operation and sign, the position that each output pixel is read from."""
    inside: Tensor
    """(10, HW) uint8: 0 where that is outside."""
    of_channels: Tensor
    """``pixel_tables.channel_tables``."""


class _Bounds:
    """Where each operation's samples begin in a round's order, and the last one's end."""

    def __init__(self, bounds: list[int]) -> None:
        self._bounds = bounds

    def of(self, first: str, last: str | None = None) -> slice:
        """Samples of an operation, or of those from ``first`` to ``last``."""
        return slice(self._bounds[_ORDER.index(first)], self._bounds[_ORDER.index(last or first) + 1])

    def behind(self, start: int) -> _Bounds:
        """Counted from this sample on."""
        return _Bounds([bound - start for bound in self._bounds])


class _Plan:
    """What is decided on the host.

    Attributes:
        numbers: all that the device needs, in one piece, int32: in which order each round takes the samples of the one
            before, and the result those of the last (R+1, V·N); in which table each channel is looked up, as an offset
            (R, C, V·N); the geometric operations of all rounds, by operation and sign.
        sizes: how many numbers each of these is.
        bounds: of each round.
        num_moved: samples that geometry moves, in each round.
        num_tables: that are needed at a time.
    """

    def __init__(self, ops: NDArray[np.int64], negative: NDArray[np.bool_], *, num_images: int, channels: int) -> None:
        places = _PLACES[ops]
        order = np.argsort(places, axis=0, kind="stable")
        back = np.argsort(order, axis=0)
        orders = np.vstack((order.T, back[:, -1:].T))
        orders[0] %= num_images
        for r in range(1, ops.shape[1]):
            orders[r] = back[orders[r], r - 1]
        places = np.take_along_axis(places, order, axis=0).T  # (R, V·N) from here on
        signs = np.take_along_axis(negative, order, axis=0).T.astype(np.int64)
        self.bounds = [_Bounds(np.searchsorted(row, np.arange(len(_ORDER) + 1)).tolist()) for row in places]
        tables = np.repeat(_FIRST_TABLES[places, signs][:, None], channels, axis=1)  # (R, C, V·N)
        self.num_tables = pixel_tables.NUM_FIXED
        for of_round, bounds in zip(tables, self.bounds, strict=True):
            own = of_round[:, bounds.of("AutoContrast", "Equalize")]
            own[:] = pixel_tables.NUM_FIXED + np.arange(own.size).reshape(-1, channels).T
            self.num_tables = max(self.num_tables, pixel_tables.NUM_FIXED + own.size)
        moved = [bounds.of(GEOMETRIC[0], GEOMETRIC[-1]) for bounds in self.bounds]
        variants = 2 * (places - _ORDER.index(GEOMETRIC[0])) + signs
        parts = (orders, tables * LEVELS, *(row[rows] for row, rows in zip(variants, moved, strict=True)))
        self.numbers = np.concatenate([part.ravel() for part in parts], dtype=np.int32, casting="same_kind")
        self.num_moved = [_count(rows) for rows in moved]
        self.sizes = [orders.size, tables.size, sum(self.num_moved)]


def send(array: NDArray[Any], device: torch.device) -> Tensor:
    """A host array as a tensor on the device, without waiting for a GPU's earlier work: from pinned memory."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _move(pixels: Tensor, source: Tensor, inside: Tensor) -> None:
    """Takes every pixel (n, C, HW) from its source (n, HW), 0 from outside, in place."""
    moved = pixels.gather(2, source[:, None].expand_as(pixels))
    torch.mul(moved, inside[:, None], out=pixels)


def _rounded_mean(gray: Tensor) -> Tensor:
    """Mean of each image's gray pixels (n, 1, HW), rounded half up: (n, 1, 1) int64."""
    count = gray.shape[2]
    return gray.sum(dim=2, keepdim=True).add_(count // 2).div_(count, rounding_mode="floor")


def _count(rows: slice) -> int:
    return int(rows.stop - rows.start)
