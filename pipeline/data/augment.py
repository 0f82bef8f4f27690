"""Augmentation of a batch of uint8 images on the first stage's device, every sample and view with draws of its own.

RandAugment (optional), random crop with zero padding, horizontal flip, normalise: the order in the program of
Aghagolzadeh & Ezoji 2025. RandAugment: Cubuk et al. 2020.
The draws for a sample depend on seed, epoch, view and the sample's position in the epoch's order and on nothing else;
all arithmetic is on integers or rounds once for each element. So a sample's views are the same bits in any batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import rng
from pipeline.data.crop_flip import CROP_DRAWS, CropFlip
from pipeline.data.magnitudes import NUM_BINS
from pipeline.data.randaugment import RandAugment
from pipeline.errors import UserError


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is done to training images. Validation and test images are only normalised."""

    crop_padding: int = 0
    """Zero pixels added on each side before a crop of the original size; 0: no crop."""
    flip: bool = False
    """Mirror left to right with probability 1/2."""
    randaugment_ops: int = 0
    """RandAugment's rounds; 0: off. Aghagolzadeh & Ezoji 2025: 3, as an option."""
    randaugment_magnitude: int = 14
    """RandAugment's magnitude, 0 … 30."""
    mean: tuple[float, ...]
    """Mean of each channel, pixels scaled to 0 … 1."""
    std: tuple[float, ...]
    """Standard deviation of each channel, pixels scaled to 0 … 1."""

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise UserError(f"`crop_padding` {self.crop_padding}: must be 0 (no crop) or more.")
        if self.randaugment_ops < 0:
            raise UserError(f"`randaugment_ops` {self.randaugment_ops}: must be 0 (off) or more.")
        if not 0 <= self.randaugment_magnitude < NUM_BINS:
            raise UserError(f"`randaugment_magnitude` {self.randaugment_magnitude}: must be 0 to {NUM_BINS - 1}.")
        if len(self.mean) != len(self.std) or not self.mean:
            raise UserError(f"mean has {len(self.mean)} channels and std {len(self.std)}; both must have the images'")
        if not all(map(math.isfinite, self.mean)):
            raise UserError(f"mean is {self.mean}; every channel's must be finite")
        if not all(math.isfinite(s) and s > 0.0 for s in self.std):
            raise UserError(f"std is {self.std}; every channel's must be finite and above 0")
        if self.randaugment_ops and len(self.mean) not in (1, 3):
            raise UserError(
                f"RandAugment works on images of 1 or 3 channels, these have {len(self.mean)}. Use `randaugment_ops` 0."
            )


class Augment:
    """Turns uint8 images into normalised float32 views on ``device``."""

    def __init__(self, config: AugmentConfig, *, seed: int, device: torch.device) -> None:
        self._config = config
        self._seed = seed
        self._device = device
        self._shift, self._scale = (values.to(device) for values in shift_and_scale(config.mean, config.std))
        self._randaugment = RandAugment(
            num_ops=config.randaugment_ops, magnitude=config.randaugment_magnitude, device=device
        )
        self._crop_flip = CropFlip(padding=config.crop_padding, flip=config.flip, device=device)

    def views(self, images: Tensor, *, epoch: int, position: int, num_views: int, purpose: str = "augment") -> Tensor:
        """Random views of images, the first at ``position`` of the epoch's order; each purpose draws its own.

        Images (N, C, H, W) uint8, on the host or the device → (V·N, C, H, W) float32 on the device: all of view 0,
        then all of view 1; with 0 views the plain images (N, C, H, W). The copy of pinned host images may still be
        under way on return: fill their buffer anew only after the work queued here. Raises ValueError if the images are
        not uint8 of the configured number of channels, or a number is out of range.
        """
        self._check(images)
        if epoch < 0 or position < 0 or num_views < 0:
            raise ValueError(f"epoch {epoch}, position {position}, {num_views} views: at least 0 of each are needed")
        if num_views == 0:
            return self.plain(images)
        images = images.to(self._device, non_blocking=True)
        out = torch.empty(num_views, *images.shape, dtype=torch.float32, device=self._device)
        if len(images):
            changed = self._changed(images, purpose, epoch, position, num_views)
            self._normalize(changed.view(-1, *images.shape), out=out)
        return out.flatten(0, 1)

    def evaluation(self, images: Tensor, *, epoch: int, position: int, num_views: int) -> Tensor:
        """Images to be evaluated: with ``num_views`` random views of their own, with 0 as they are."""
        return self.views(images, epoch=epoch, position=position, num_views=num_views, purpose="augment/validation")

    def plain(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) uint8 → (N, C, H, W) float32 on the device, normalised and nothing else.

        Raises ValueError if the images are not uint8 of the configured number of channels.
        """
        self._check(images)
        images = images.to(self._device, non_blocking=True)
        out = torch.empty(images.shape, dtype=torch.float32, device=self._device)
        self._normalize(images, out=out)
        return out

    def _check(self, images: Tensor) -> None:
        channels = len(self._config.mean)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != channels:
            raise ValueError(f"images are {tuple(images.shape)} {images.dtype}; (N, {channels}, H, W) uint8 is needed")

    def _changed(self, images: Tensor, purpose: str, epoch: int, position: int, num_views: int) -> Tensor:
        """Images (N, C, H, W) as the views see them: (V·N, C, H, W), or the N themselves where nothing changes them."""
        count = len(images)

        def draws(what: str, each: int) -> NDArray[np.float64]:  # (V·N, each)
            keys = (f"{purpose}/{what}", epoch)
            views = range(num_views)
            of_views = [rng.uniform(self._seed, *keys, v, first=position, count=count, draws=each) for v in views]
            return np.concatenate(of_views)

        # Purposes of their own: turning RandAugment on leaves every crop and flip as it was.
        if self._config.randaugment_ops:
            images = self._randaugment(images, draws("randaugment", self._randaugment.num_draws))
        if self._config.crop_padding or self._config.flip:
            images = self._crop_flip(images, draws("crop-flip", CROP_DRAWS))
        return images

    def _normalize(self, images: Tensor, *, out: Tensor) -> None:
        normalize_(out.copy_(images), self._shift, self._scale)


def shift_and_scale(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """For ``normalize_``: (pixel/255 − mean)/std as (pixel − shift)·scale, each (channels, 1, 1) float32."""
    return (255.0 * _per_channel(mean)).float(), (1.0 / (255.0 * _per_channel(std))).float()


def normalize_(pixels: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalises pixels 0 … 255 (N, C, H, W) float32 in place."""
    # Two passes, each rounding once for an element: a fused multiply-add in the vectorised part of a pass but not in
    # its tail would let a pixel's value depend on its position in the batch.
    return pixels.sub_(shift).mul_(scale)


def _per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
