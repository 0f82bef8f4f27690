"""RandAugment for a batch of uint8 images, every sample with operations of its own.

Operations and magnitudes are torchvision's (``transforms.RandAugment``: 14 operations, 31 bins, nearest interpolation,
fill 0). The arithmetic is Pillow's, which torchvision applies to decoded images: integers where Pillow has integers,
float32 and float64 where Pillow has those, so that the results are Pillow's bits on any device and in any batch.

Which sample gets which operation is decided on the host. The samples of one operation are put side by side, changed
together and put back; on a GPU nothing is read back and nothing waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUM_BINS: Final = 31

GEOMETRIC: Final = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
# An operation's number is its index here. The geometric ones stand together because one gather does them all.
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

_Operation = Callable[[Tensor, Tensor], Tensor]


class RandAugment:
    """``num_ops`` rounds of an operation drawn uniformly, with replacement, for each sample.

    ``magnitude`` is a bin from 0 (nothing) to 30. A signed operation (geometry, brightness, colour, contrast,
    sharpness) goes either way with probability 1/2.
    """

    def __init__(self, *, num_ops: int, magnitude: int, device: torch.device) -> None:
        self.num_ops = num_ops
        self._magnitude = magnitude
        self._device = device
        enhance = _bin(0.0, 0.9, magnitude)
        # Pillow takes the factor as a C float. Entry 0 for the positive sign, 1 for the negative.
        self._factors = torch.tensor([1.0 + enhance, 1.0 - enhance], dtype=torch.float32, device=device)
        self._posterize_mask = 0xFF << _dropped_bits(magnitude) & 0xFF
        self._solarize_from = math.ceil(_bin(255.0, 0.0, magnitude))
        self._sources: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._steps: tuple[tuple[int, int, _Operation], ...] = (
            (OPS.index(GEOMETRIC[0]), OPS.index(GEOMETRIC[-1]) + 1, self._geometry),
            *(
                (OPS.index(name), OPS.index(name) + 1, operation)
                for name, operation in (
                    ("Brightness", self._brightness),
                    ("Color", self._color),
                    ("Contrast", self._contrast),
                    ("Sharpness", self._sharpness),
                    ("Posterize", self._posterize),
                    ("Solarize", self._solarize),
                    ("AutoContrast", self._autocontrast),
                    ("Equalize", self._equalize),
                )
            ),
        )

    @property
    def num_draws(self) -> int:
        """Uniform numbers that ``__call__`` needs for one sample: an operation and a sign for each round."""
        return 2 * self.num_ops

    def __call__(self, images: Tensor, draws: NDArray[np.float64]) -> Tensor:
        """Images (N, C, H, W) uint8 with C = 1 or 3, draws (N, num_draws) in [0, 1) → (N, C, H, W) uint8."""
        ops = (draws[:, 0::2] * len(OPS)).astype(np.int64)
        return self.apply(images, ops, draws[:, 1::2] < 0.5)

    def apply(self, images: Tensor, ops: NDArray[np.int64], negative: NDArray[np.bool_]) -> Tensor:
        """Apply operation ``ops[n, r]``, an index into OPS, with sign ``negative[n, r]`` to sample n in round r.

        Images (N, C, H, W) uint8 on the device with C = 1 or 3, ops and negative (N, R) → (N, C, H, W) uint8.
        """
        order = np.argsort(ops, axis=0, kind="stable")
        back = np.argsort(order, axis=0)
        sorted_ops = np.take_along_axis(ops, order, axis=0)
        variant = np.take_along_axis(negative, order, axis=0).astype(np.int64)  # 0 or 1: the sign
        geometric = (sorted_ops >= 1) & (sorted_ops <= len(GEOMETRIC))
        variant[geometric] += 2 * (sorted_ops[geometric] - 1)  # 0 … 9: operation and sign
        plan = send(np.stack((order, back, variant)), self._device)  # one copy for all rounds
        for r in range(ops.shape[1]):
            starts = np.searchsorted(sorted_ops[:, r], np.arange(len(OPS) + 1)).tolist()
            grouped = images.index_select(0, plan[0, :, r])
            for first, end, operation in self._steps:
                rows = slice(starts[first], starts[end])
                if rows.start < rows.stop:
                    grouped[rows] = operation(grouped[rows], plan[2, rows, r])
            images = grouped.index_select(0, plan[1, :, r])
        return images

    # Every operation: images (n, C, H, W) uint8, variant (n,) int64 → (n, C, H, W) uint8.

    def _geometry(self, images: Tensor, variant: Tensor) -> Tensor:
        n, channels, height, width = images.shape
        size = (height, width)
        if size not in self._sources:
            source = torch.from_numpy(_sources(height, width, self._magnitude)).to(self._device)
            self._sources[size] = (source.clamp(min=0), (source >= 0).to(torch.uint8))
        source, inside = self._sources[size]
        index = source[variant][:, None].expand(n, channels, -1)
        moved = images.flatten(2).gather(2, index).mul_(inside[variant][:, None])
        return moved.view_as(images)

    def _brightness(self, images: Tensor, variant: Tensor) -> Tensor:
        return self._blend(torch.zeros((), device=images.device), images, variant)

    def _color(self, images: Tensor, variant: Tensor) -> Tensor:
        return images if images.shape[1] == 1 else self._blend(_gray(images).float(), images, variant)

    def _contrast(self, images: Tensor, variant: Tensor) -> Tensor:
        gray = _gray(images).flatten(1)  # (n, HW)
        count = gray.shape[1]
        mean = (2 * gray.sum(dim=1, dtype=torch.int64) + count) // (2 * count)  # rounded half up
        return self._blend(mean.float().view(-1, 1, 1, 1), images, variant)

    def _sharpness(self, images: Tensor, variant: Tensor) -> Tensor:
        # Pillow's SMOOTH: 3×3 of ones with 5 in the middle, over 13; the border stays as it is. Every sum is a whole
        # number below 2²⁴ and no thirteenth lies on a half, so float32 rounds as exact arithmetic would.
        smooth = images.float()
        if min(images.shape[2:]) >= 3:
            across = smooth[..., :-2] + smooth[..., 1:-1] + smooth[..., 2:]
            total = across[:, :, :-2] + across[:, :, 1:-1] + across[:, :, 2:]
            total.add_(smooth[:, :, 1:-1, 1:-1] * 4.0)
            smooth[:, :, 1:-1, 1:-1] = total.div_(13.0).add_(0.5).floor_()
        return self._blend(smooth, images, variant)

    def _posterize(self, images: Tensor, variant: Tensor) -> Tensor:
        return images & self._posterize_mask

    def _solarize(self, images: Tensor, variant: Tensor) -> Tensor:
        # 255 − pixel is the pixel with every bit turned over.
        return images ^ (images >= self._solarize_from).to(torch.uint8).mul_(255)

    def _autocontrast(self, images: Tensor, variant: Tensor) -> Tensor:
        low = images.amin(dim=(2, 3), keepdim=True).double()  # (n, C, 1, 1)
        high = images.amax(dim=(2, 3), keepdim=True).double()
        flat = high == low
        span = torch.where(flat, 1.0, high - low)
        # float64 and cut off, as Pillow does: a bright pixel may come out as 254.99…, that is 254. A true division:
        # torch turns 255.0 / span into 255 times the reciprocal, which rounds twice.
        scale = torch.full_like(span, 255.0) / span
        stretched = images.double().mul_(scale).add_(-low * scale).clamp_(0.0, 255.0).to(torch.uint8)
        return torch.where(flat, images, stretched)

    def _equalize(self, images: Tensor, variant: Tensor) -> Tensor:
        pixels = images.flatten(2).long()  # (n, C, HW)
        n, channels, count = pixels.shape
        histogram = torch.zeros(n, channels, 256, dtype=torch.int64, device=images.device)
        histogram.scatter_add_(2, pixels, torch.ones_like(pixels))
        brightest = histogram.gather(2, pixels.amax(dim=2, keepdim=True))
        step = (count - brightest) // 255  # (n, C, 1)
        darker = histogram.cumsum(dim=2) - histogram
        table = (step // 2 + darker).div(step.clamp(min=1), rounding_mode="floor").clamp_(max=255).to(torch.uint8)
        equalized = table.gather(2, pixels)
        return torch.where(step == 0, images.flatten(2), equalized).view_as(images)

    def _blend(self, base: Tensor, images: Tensor, variant: Tensor) -> Tensor:
        """Pillow's ``Image.blend(base, image, factor)``: float32, limited to 0 … 255, then cut off.

        Each operation rounds by itself (no fused multiply-add), so that CPU and GPU agree.
        """
        factor = self._factors[variant].view(-1, 1, 1, 1)
        return (images.float() - base).mul_(factor).add_(base).clamp_(0.0, 255.0).to(torch.uint8)


def send(array: NDArray[np.int64], device: torch.device) -> Tensor:
    """A host array as a tensor on the device, without waiting for a GPU's earlier work: from pinned memory."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _bin(first: float, last: float, magnitude: int) -> float:
    """Bin ``magnitude`` of a scale from ``first`` to ``last``, in float32 as torchvision computes it."""
    return float(torch.linspace(first, last, NUM_BINS)[magnitude])


def _dropped_bits(magnitude: int) -> int:
    """Low bits that Posterize sets to zero: 0 … 4."""
    return int((torch.tensor(magnitude) / ((NUM_BINS - 1) / 4)).round())


def _gray(images: Tensor) -> Tensor:
    """Luma as Pillow's ``convert("L")``, 16-bit fixed point: (n, 3 or 1, H, W) uint8 → (n, 1, H, W) uint8 or int32."""
    if images.shape[1] == 1:
        return images
    pixels = images.int()
    return (pixels[:, 0:1] * 19595 + pixels[:, 1:2] * 38470 + pixels[:, 2:3] * 7471 + 0x8000) >> 16


def _sources(height: int, width: int, magnitude: int) -> NDArray[np.int64]:
    """For each geometric operation and sign, the position y·W + x that each output pixel is read from; −1 is outside.

    (10, H·W): row 2·i for GEOMETRIC[i] with positive sign, row 2·i + 1 with negative sign.
    """
    shear = _bin(0.0, 0.3, magnitude)
    # Cut off to whole pixels, towards zero.
    right = int(_bin(0.0, 150.0 / 331.0 * width, magnitude))
    down = int(_bin(0.0, 150.0 / 331.0 * height, magnitude))
    degrees = _bin(0.0, 30.0, magnitude)
    rows = []
    for sign in (1, -1):
        matrices = (
            (1.0, sign * shear, 0.0, 0.0, 1.0, 0.0),
            (1.0, 0.0, 0.0, sign * shear, 1.0, 0.0),
            (1.0, 0.0, -sign * right, 0.0, 1.0, 0.0),
            (1.0, 0.0, 0.0, 0.0, 1.0, -sign * down),
            _rotation(height, width, sign * degrees),
        )
        rows.append([_nearest(height, width, matrix) for matrix in matrices])
    return np.stack([row for pair in zip(*rows, strict=True) for row in pair])


def _rotation(height: int, width: int, degrees: float) -> tuple[float, ...]:
    """Output to input coordinates for a counter-clockwise rotation about the centre of the image."""
    angle = -math.radians(degrees)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return (cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y)


def _nearest(height: int, width: int, matrix: tuple[float, ...]) -> NDArray[np.int64]:
    """Input position y·W + x nearest to each output pixel's, −1 outside: (H·W,).

    ``matrix`` (a, b, c, d, e, f) takes an output point (x, y) to the input point (ax + by + c, dx + ey + f). Pixel
    centres lie on halves. 16.16 fixed point, Pillow's own, for its rounding.
    """
    a, b, c, d, e, f = matrix

    def fixed(value: float) -> int:
        return math.floor(value * 65536.0 + 0.5)

    y, x = np.mgrid[:height, :width].astype(np.int64)
    from_x = (fixed(c + a * 0.5 + b * 0.5) + x * fixed(a) + y * fixed(b)) >> 16
    from_y = (fixed(f + d * 0.5 + e * 0.5) + x * fixed(d) + y * fixed(e)) >> 16
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    return np.where(inside, from_y * width + from_x, -1).ravel()
