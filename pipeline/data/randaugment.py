"""RandAugment for a batch of uint8 images, every sample with operations of its own.

Operations and magnitudes are torchvision's (``transforms.RandAugment``: 14 operations, 31 bins, nearest interpolation,
fill 0). The arithmetic is Pillow's, which torchvision applies to decoded images, so that the results are Pillow's bits
on any device and in any batch.

Which sample gets which operation is decided on the host. In each round the samples of one operation are put side by
side. One gather moves the pixels of all geometric operations; one look-up changes those of all others, which differ
only in the table of 256 entries that a pixel is looked up in (``pipeline.data.pixel_tables``). So a round is some 40
kernels on a GPU, however large the batch and whatever was drawn; nothing is read back and nothing waits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data import pixel_tables
from pipeline.data.geometry import GEOMETRIC, sources
from pipeline.data.pixel_tables import LEVELS
from pipeline.data.rounds import OPS, Bounds, Plan, count_of


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
        plan = Plan(ops, negative, num_images=num_images, channels=channels)
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
            if count_of(changed):
                first_entries = offsets[r].T[changed, :, None]  # (n, C, 1)
                behind = bounds.counted_from(changed.start)
                self._change(images[changed], first_entries, tables, behind, of_size.of_channels)
        return images.index_select(0, orders[-1])

    def _change(self, images: Tensor, offsets: Tensor, tables: Tensor, bounds: Bounds, parameters: Tensor) -> None:
        """Looks up every pixel in its table, in place: images (n, C, H, W).

        ``offsets`` (n, C, 1) int32 is where in ``tables`` the table of a channel begins; of blends that towards base 0,
        and to it comes the pixel's base. ``parameters``: ``pixel_tables.channel_tables``.
        """
        pixels = images.flatten(2)
        of_channels = bounds.of("AutoContrast", "Equalize")
        if count_of(of_channels):
            own = self._channel_tables(pixels[of_channels], count_of(bounds.of("Equalize")), parameters)
            tables[len(self._fixed) :][: own.numel()].copy_(own.view(-1))
        index = pixels + offsets
        contrast, color, sharpness = map(bounds.of, ("Contrast", "Color", "Sharpness"))
        if count_of(bounds.of("Contrast", "Color")):
            gray = self._gray(pixels[bounds.of("Contrast", "Color")])
            index[contrast].add_(_rounded_mean(gray[: count_of(contrast)]), alpha=LEVELS)
            index[color].add_(gray[count_of(contrast) :], alpha=LEVELS)
        if count_of(sharpness):
            index[sharpness].add_(self._smooth(images[sharpness]).flatten(2), alpha=LEVELS)
        torch.index_select(tables, 0, index.flatten(), out=pixels.view(-1))

    def _channel_tables(self, pixels: Tensor, num_equalized: int, parameters: Tensor) -> Tensor:
        """AutoContrast's table for each channel of these pixels (n, C, HW), Equalize's for the last ``num_equalized``
        images: (n, C, 256) float64, to be cut off."""
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
