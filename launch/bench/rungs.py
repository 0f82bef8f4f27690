"""The rungs of the ablation's ladder: what is turned on at each, and the loop that trains there.

All train the same net by the same mathematics on one process, from memory. The first is what a researcher would write:
eager, float32, ``torch.optim.AdamW``, the loss as it stands in the paper. Each further rung keeps what those before it
turned on.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from launch.bench.child import Answer
from pipeline import keys, resolve
from pipeline.allocator import keep_freed_memory
from pipeline.data.augment import Augment
from pipeline.data.loader import Batch
from pipeline.determinism import settle
from pipeline.footprint import give_back, peak_bytes, reset_peak
from pipeline.layer import LocalLayer
from pipeline.messages import Kind
from pipeline.nets import Dropout
from pipeline.rules import CffSettings, Context
from pipeline.rules.cff import margin
from pipeline.rules.contrastive import marginal_contrastive_loss
from pipeline.settings import PipelineSettings
from pipeline.spec import RunSpec

_KEPT = 4  # batches in memory


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One step of the ladder: all that is turned on there.

    Attributes:
        name: what is new.
        allocator: freed memory is kept (``pipeline.allocator``).
        fused: AdamW in one kernel.
        loss: the product's loss, which does not hold the whole matrix of similarities.
        layer: the product's own layer (``pipeline.layer``) in place of the loop.
        compile, precision, wire: the run's flags; they need the product's layer.
    """

    name: str
    allocator: bool = True
    fused: bool = True
    loss: bool = True
    layer: bool = True
    compile: Literal["off", "on"] = "on"
    precision: Literal["fp32", "bf16"] = "bf16"
    wire: Literal["fp32", "bf16"] = "bf16"

    def settings(self, pipe: PipelineSettings) -> PipelineSettings:
        """The run's settings at this rung."""
        return replace(pipe, compile=self.compile, precision=self.precision, wire=self.wire)


_WIRE = Rung(name="--wire bf16")
_BF16 = replace(_WIRE, name="--precision bf16", wire="fp32")
_COMPILED = replace(_BF16, name="--compile on", precision="fp32")
_LAYER = replace(_COMPILED, name="the product's layer", compile="off")
_LOSS = replace(_LAYER, name="the product's loss", layer=False)
_FUSED = replace(_LOSS, name="fused AdamW", loss=False)
_ALLOCATOR = replace(_FUSED, name="freed memory kept", fused=False)
LADDER = (
    replace(_ALLOCATOR, name="plain loop, eager, fp32", allocator=False),
    _ALLOCATOR,
    _FUSED,
    _LOSS,
    _LAYER,
    _COMPILED,
    _BF16,
    _WIRE,
)
"""From the bottom."""
TUNED = 1
"""The rung that is the plain loop with the allocator tuned: the fairer one to be held against."""


def plain_loss(z: Tensor, labels: Tensor, *, temperature: float, margin: float) -> Tensor:
    """The marginal contrastive loss () as one writes it down (seed 001, eqs. 3 and 15).

    Args:
        z: unit-length features (R, C).
        labels: class of each row (R,).
    """
    similarity = z @ z.T  # (R, R)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    similarity = torch.where(positive, torch.clamp(similarity + margin, max=1.0), similarity)
    logits = (similarity / temperature).masked_fill(itself, -torch.inf)
    log_probability = logits - logits.logsumexp(dim=1, keepdim=True)
    summed = log_probability.masked_fill(~positive, 0.0).sum(dim=1)
    return -(summed / positive.sum(dim=1).clamp(min=1)).mean()


class PlainLoop:
    """Contrastive Forward-Forward as a researcher would write it, from the run's initial weights."""

    def __init__(self, spec: RunSpec, rung: Rung, device: torch.device) -> None:
        method, train = spec.settings.method, spec.settings.train
        assert isinstance(method, CffSettings), "the ladder is CFF's"
        self._method, self._loss = method, marginal_contrastive_loss if rung.loss else plain_loss
        self.layers, self._optimizers = [], []
        for index in range(spec.num_layers):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(keys.torch_seed(train.seed, "init", index))
                layer = spec.net.build(index, spec.shape).to(device)
            for module in layer.modules():
                if isinstance(module, Dropout):
                    module.generator = torch.Generator(device)
            self.layers.append(layer)
            self._optimizers.append(
                torch.optim.AdamW(
                    layer.parameters(), lr=train.lr, weight_decay=train.weight_decay, fused=rung.fused or None
                )
            )

    def step(self, views: Tensor, labels: Tensor) -> Tensor:
        """One update of every layer from views (V·N, channels, H, W). Returns the last layer's loss ()."""
        x, labels = views, labels.repeat(self._method.views)
        for index, (layer, optimizer) in enumerate(zip(self.layers, self._optimizers, strict=True)):
            h = layer(x)
            z = F.normalize(layer.pool(h), dim=1)
            m = margin(self._method, index, len(self.layers))
            loss = self._loss(z, labels, temperature=self._method.temperature, margin=m)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            x = h.detach()
        return loss.detach()


class ProductLoop:
    """The same by the run's own layers."""

    def __init__(self, spec: RunSpec, device: torch.device) -> None:
        self._spec = spec
        self.layers = [LocalLayer(spec, index, device) for index in range(spec.num_layers)]

    def step(self, views: Tensor, labels: Tensor, batch: Batch, epoch: int) -> Tensor:
        """As ``PlainLoop.step``."""
        place = self._spec.place(Kind.TRAIN, epoch, batch.step, batch.position)
        streams = self.layers[0].rule.enter(views, Context(labels=labels, place=place))
        for layer in self.layers:
            streams, loss = layer.train(streams, labels, place)
        return loss


def climb(work: tuple[RunSpec, Rung]) -> Answer:
    """In a process of its own: settles the rung; answers (warm, steps) with what they took."""
    spec, rung = work
    device = spec.stage_device(0)
    if rung.layer:
        settle(spec, device)
    else:
        torch.set_num_threads(spec.settings.pipeline.threads)
        if rung.allocator:
            keep_freed_memory()
    dataset = resolve.open_folder(spec.settings, Path(spec.data_folder))
    size = spec.settings.train.batch_size
    batches = itertools.cycle(list(itertools.islice(dataset.batches("train", epoch=0, batch_size=size), _KEPT)))
    augment = Augment(spec.augment, seed=spec.settings.train.seed, device=device)
    num_views = spec.settings.method.views if isinstance(spec.settings.method, CffSettings) else 1
    product = ProductLoop(spec, device) if rung.layer else None
    plain = PlainLoop(spec, rung, device) if product is None else None
    counted = itertools.count()

    def step() -> Tensor:
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
            loss = step()
        _synchronize(device)
        begun = time.perf_counter()
        for _ in range(steps):
            loss = step()
        _synchronize(device)
        took = time.perf_counter() - begun
        peak = peak_bytes(device)
        give_back(device)
        return took, float(loss), peak

    return answer


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
