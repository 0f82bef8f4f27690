"""The steps of the ablation: what is turned on at each, and the loop that trains there.

All train the same net by the same mathematics on one process, from memory. The first is what a researcher would write:
eager, float32, ``torch.optim.AdamW``, layers and loss as in Aghagolzadeh & Ezoji 2025. Each further step keeps what
those before it turned on.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from launch.bench.plain import Optimizations, PlainLoop
from pipeline.config import build
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import PipelineSettings
from pipeline.data.augment import Augment
from pipeline.data.loader import Batch
from pipeline.kind import Kind
from pipeline.layers.layer import LocalLayer
from pipeline.methods import CffSettings
from pipeline.runtime.allocator import keep_freed_memory
from pipeline.runtime.process import configure_process
from pipeline.runtime.step_graphs import capture_steps
from pipeline.telemetry.memory import give_back, peak_bytes, reset_peak

_KEPT = 4  # batches in memory


@dataclass(frozen=True, kw_only=True)
class AblationStep:
    """One step: all that is turned on there.

    Attributes:
        name: what is new.
        allocator: freed memory is kept (``pipeline.runtime.allocator``).
        plain: the plain loop with these optimizations; None for the product's own layer (``pipeline.layers.layer``),
            which has them all, and moves the last linear map behind the pooling.
        compile, precision, transfer_dtype: the run's flags; they need the product's layer.
    """

    name: str
    allocator: bool = True
    plain: Optimizations | None = None
    compile: Literal["off", "on"] = "off"
    precision: Literal["fp32", "bf16"] = "fp32"
    transfer_dtype: Literal["fp32", "bf16"] = "fp32"

    def settings(self, pipe: PipelineSettings) -> PipelineSettings:
        """The run's settings at this step."""
        return replace(pipe, compile=self.compile, precision=self.precision, transfer_dtype=self.transfer_dtype)


_FUSED = Optimizations(fused_optimizer=True)
_BLOCKS = replace(_FUSED, blockwise_loss=True)
_PRODUCTS = replace(_BLOCKS, attention_by_products=True)
_FOLDED = replace(_PRODUCTS, folded_norm=True)
STEPS = (
    AblationStep(name="plain loop, eager, fp32", allocator=False, plain=Optimizations()),
    AblationStep(name="freed memory kept", plain=Optimizations()),
    AblationStep(name="fused AdamW", plain=_FUSED),
    AblationStep(name="loss in blocks of rows", plain=_BLOCKS),
    AblationStep(name="attention by products", plain=_PRODUCTS),
    AblationStep(name="first norm folded", plain=_FOLDED),
    AblationStep(name="part by part of the batch", plain=replace(_FOLDED, in_parts=True)),
    AblationStep(name="last map after pooling"),
    AblationStep(name="--compile on", compile="on"),
    AblationStep(name="--precision bf16", compile="on", precision="bf16"),
    AblationStep(name="--transfer-dtype bf16", compile="on", precision="bf16", transfer_dtype="bf16"),
)
"""From the bottom; each has what those before it have."""
TUNED = 1
"""The step that is the plain loop with the allocator tuned: the fairer one to be held against."""


class ProductLoop:
    """The same by the run's own layers."""

    def __init__(self, spec: RunSpec, device: torch.device) -> None:
        self._spec = spec
        self.layers = [LocalLayer(spec, index, device) for index in range(spec.num_layers)]
        capture_steps(spec, self.layers)

    def step(self, views: Tensor, labels: Tensor, batch: Batch, epoch: int) -> Tensor:
        """As ``PlainLoop.step``."""
        where = self._spec.batch_position(Kind.TRAIN, epoch, batch.step, batch.position)
        activations = self.layers[0].make_inputs(views, labels, where)
        for layer in self.layers:
            activations, loss = layer.train(activations, labels, where)
        return loss


def train_step_by_step(spec: RunSpec, step: AblationStep) -> Callable[[tuple[int, int]], tuple[float, float, int]]:
    """In a process of its own: prepares the step of the ablation; answers (warm, steps) with what they took."""
    device = spec.stage_device(0)
    if step.plain is None:
        configure_process(spec, device)
    else:
        torch.set_num_threads(spec.settings.pipeline.threads)
        if step.allocator:
            keep_freed_memory()
    dataset = build.open_folder(spec.settings, Path(spec.data_folder))
    size = spec.settings.train.batch_size
    batches = itertools.cycle(list(itertools.islice(dataset.batches("train", epoch=0, batch_size=size), _KEPT)))
    augment = Augment(spec.augment, seed=spec.settings.train.seed, device=device)
    num_views = spec.settings.method.views if isinstance(spec.settings.method, CffSettings) else 1
    product = ProductLoop(spec, device) if step.plain is None else None
    plain = PlainLoop(spec, step.plain, device) if step.plain is not None else None
    counted = itertools.count()

    def train_step() -> Tensor:
        batch, epoch = next(batches), next(counted)
        views = augment.views(batch.images, epoch=epoch, position=batch.position, num_views=num_views)
        labels = batch.labels.to(device)
        if product is not None:
            return product.step(views, labels, batch, epoch)
        assert plain is not None
        return plain.step(views, labels)

    def answer(question: tuple[int, int]) -> tuple[float, float, int]:
        warm, steps = question
        reset_peak(device)
        for _ in range(warm):
            loss = train_step()
        _synchronize(device)
        begun = time.perf_counter()
        for _ in range(steps):
            loss = train_step()
        _synchronize(device)
        took = time.perf_counter() - begun
        peak = peak_bytes(device)
        give_back(device)
        return took, float(loss), peak

    return answer


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
