"""`launch bench --ablate`: from a plain PyTorch loop to the product's step, one optimisation after the other.

All rungs train the same net by the same mathematics on one process, from memory. The first is what a researcher would
write: eager, float32, ``torch.optim.AdamW``, the loss as it stands in the paper. Each further rung keeps what those
before it turned on.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from launch.bench.arguments import BenchArguments, check, output_folder
from launch.bench.child import Answer, Child
from launch.bench.contest import Contestant, DeviceUse, Round
from launch.bench.contestants import Entry, compete
from launch.bench.figures import Figures, figures_of, ratio
from launch.runfolder import command_line
from launch.summary import machine
from pipeline import keys, resolve
from pipeline import settings as settings_module
from pipeline.allocator import ENVIRONMENT, keep_freed_memory
from pipeline.data.augment import Augment
from pipeline.data.loader import Batch
from pipeline.determinism import settle
from pipeline.errors import UserError
from pipeline.footprint import give_back, peak_bytes, reset_peak
from pipeline.layer import LocalLayer
from pipeline.messages import Kind
from pipeline.nets import Dropout
from pipeline.resolve import num_cores
from pipeline.rules import CffSettings, Context
from pipeline.rules.cff import margin
from pipeline.rules.contrastive import marginal_contrastive_loss
from pipeline.settings import PipelineSettings, Settings
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


def _climb(work: tuple[RunSpec, Rung]) -> Answer:
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


class RungContestant(Contestant):
    """A rung as a row: it takes turns with the others.

    Attributes:
        first_step: seconds of the very first step; what it takes more than the others is compilation, for the most.
    """

    family: Literal["backprop", "local"] = "local"

    def __init__(self, spec: RunSpec, rung: Rung, *, warm: int) -> None:
        self.name = self.title = rung.name
        self._spec = replace(spec, settings=replace(spec.settings, pipeline=rung.settings(spec.settings.pipeline)))
        self._rung, self._warm = rung, warm
        self._child: Child | None = None
        self.first_step = 0.0

    def start(self) -> None:
        self._child = Child(self.name, _climb, (self._spec, self._rung))
        self.first_step = self._child.ask((0, 1))[0]

    def round(self, steps: int) -> Round:
        assert self._child is not None, "start() comes first"
        took, loss, peak = self._child.ask((self._warm, steps))
        use = DeviceUse(name="process", seconds={"busy": took}, peak_bytes=peak)
        images = steps * self._spec.settings.train.batch_size
        return Round(images=images, seconds=took, devices=(use,), bytes_per_step=0, loss=loss)

    def close(self) -> None:
        if self._child is not None:
            self._child.close()
        self._child = None


@dataclass(frozen=True, kw_only=True)
class LadderRow:
    """A rung of the report: times the first rung, times the one before, and seconds spent compiling."""

    name: str
    images_per_second: float
    low: float
    high: float
    to_first: float
    to_tuned: float
    to_before: float
    compile_seconds: float
    peak_bytes: int


def ladder(entries: Sequence[Entry], batch_size: int) -> list[LadderRow]:
    """The rungs that ran. A rung that did not is left out, and the next one is compared with the one before it."""
    ran = [(entry, row) for entry, row in zip(entries, figures_of(entries, batch_size), strict=True) if entry.rounds]
    tuned = next((entry for entry, _ in ran if entry.name == LADDER[TUNED].name), ran[0][0]) if ran else None
    rows = []
    for number, (entry, row) in enumerate(ran):
        assert tuned is not None
        rows.append(
            LadderRow(
                name=entry.name,
                images_per_second=row.images_per_second or 0.0,
                low=row.low or 0.0,
                high=row.high or 0.0,
                to_first=_times(entry, ran[0][0]),
                to_tuned=_times(entry, tuned),
                to_before=_times(entry, ran[max(0, number - 1)][0]),
                compile_seconds=_compiling(entry, row),
                peak_bytes=row.peak_bytes or 0,
            )
        )
    return rows


def ablate(asked: BenchArguments, console: Console, *, threads_given: bool) -> None:
    """Climbs the ladder and reports. Raises UserError for methods that it does not have a plain loop of."""
    check(asked)
    settings, method = asked.settings, asked.settings.method
    if not isinstance(method, CffSettings):
        raise UserError(f"--ablate with {method.kind}: the ladder is of Contrastive Forward-Forward alone.")
    threads = settings.pipeline.threads if threads_given else num_cores()
    settings = _single(settings, threads)
    folder = output_folder(asked.out, "bench-ablation")
    spec = _spec(settings)
    entries = [Entry(contestant=RungContestant(spec, rung, warm=asked.warm), source="memory") for rung in LADDER]
    title = (
        f"{spec.net.describe()}, {method.views}-forward, {spec.data_name}, batch {settings.train.batch_size}, "
        f"one process of {threads} thread{'s' if threads > 1 else ''} on {spec.device}"
    )

    def say(sentence: str) -> None:
        console.print(sentence, highlight=False, soft_wrap=True, markup=False)

    say(title)
    stopped = False
    try:
        compete(entries, rounds=asked.rounds, steps=asked.steps, say=say)
    except KeyboardInterrupt:
        stopped = True
    rows = ladder(entries, settings.train.batch_size)
    console.print(_table(title, rows))
    folder.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "format": 1,
        "command": command_line(),
        "title": title,
        "settings": settings_module.to_dict(settings),
        "machine": machine(),
        "allocator_variables": {name: value for name, value in _allocator_variables().items() if value is not None},
        "stopped": stopped,
        "rungs": [asdict(row) for row in rows],
        "trouble": {entry.name: entry.trouble for entry in entries if entry.trouble is not None},
        "rounds": {
            entry.name: {number + 1: taken.images / taken.seconds for number, taken in entry.rounds.items()}
            for entry in entries
        },
    }
    (folder / "ablation.json").write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    say(f"report: {folder}")
    if stopped:
        raise KeyboardInterrupt


def _single(settings: Settings, threads: int) -> Settings:
    """One process without readouts: what the plain loop does."""
    pipe = replace(settings.pipeline, executor="serial", stages="auto", partition="even", threads=threads)
    return replace(settings, pipeline=pipe, head=replace(settings.head, mode="after"))


def _spec(settings: Settings) -> RunSpec:
    resolve.check(settings)
    dataset = resolve.open_data(settings)
    devices = resolve.local_devices(settings.pipeline.device, settings.pipeline.threads)
    return resolve.place(resolve.resolve(settings, dataset), dataset, devices)


def _times(entry: Entry, other: Entry) -> float:
    found = ratio(entry, other)
    return found.of_medians if found is not None else float("nan")


def _compiling(entry: Entry, row: Figures) -> float:
    assert isinstance(entry.contestant, RungContestant)
    return max(0.0, entry.contestant.first_step - (row.step_seconds or 0.0))


def _allocator_variables() -> dict[str, str | None]:
    """Where these are set, they decide for every rung."""
    return {name: os.environ.get(name) for name in ENVIRONMENT}


def _table(title: str, rows: Sequence[LadderRow]) -> Table:
    table = Table("and with", title=title, title_justify="left")
    columns = ("images/s", "range", "× first", "× tuned plain", "× before", "first step s", "peak MiB")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.images_per_second:,.0f}",
            f"{row.low:,.0f}–{row.high:,.0f}",
            f"{row.to_first:.2f}",
            f"{row.to_tuned:.2f}",
            f"{row.to_before:.2f}",
            f"{row.compile_seconds:.1f}",
            f"{row.peak_bytes / 2**20:,.0f}",
        )
    return table
