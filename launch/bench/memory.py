"""`launch bench memory`: peak memory against depth, of one stage, of the serial loop and of backpropagation.

A stage holds one layer, its optimizer, one batch's activations and the queues on both sides, so its peak does not grow
with the net. Each figure is that of a fresh process, above what it held once torch had done a first small step and the
input was there.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from launch.bench.arguments import output_folder
from launch.bench.backprop.planning import backprop_spec
from launch.command_line.parse import parse
from launch.command_line.setting_names import as_flags
from launch.output.console import say
from launch.output.run_folder import command_line
from launch.output.summary import machine
from launch.output.tables import print_table
from pipeline.config import settings as settings_module
from pipeline.config.build import build_run
from pipeline.config.devices import Devices, local_devices
from pipeline.config.partition import partition
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import DataSettings, ReadoutSettings, Settings
from pipeline.errors import RunError, UserError
from pipeline.kind import Kind
from pipeline.methods import CffSettings
from pipeline.nets import VitSettings
from pipeline.runtime import stage as stages
from pipeline.runtime.feeder import IMAGES
from pipeline.runtime.process import configure_process
from pipeline.runtime.stage import Stage
from pipeline.spawn import Child
from pipeline.telemetry.clock import Clock
from pipeline.telemetry.memory import peak_bytes, reset_peak, resident_bytes
from pipeline.transport.channel import LocalChannel
from pipeline.transport.message import IDS, LABELS, Message

_STEPS = 3  # the first makes the optimizer's states, the second has everything at once
_FEW = 2  # images in the dry run that finds shapes
_MIB = 2**20

What = Literal["stage", "serial", "backprop"]
_ALL: tuple[What, ...] = ("stage", "serial", "backprop")
Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]


@dataclass(frozen=True, kw_only=True)
class MemoryArguments:
    """Flags of the measurement, beside those of a run."""

    settings: Settings = field(
        default_factory=lambda: Settings(
            preset="bench-memory",
            data=DataSettings(data="cifar10"),
            net=VitSettings(dim=128, heads=4, depth=4),
            method=CffSettings(views=1),
            readout=ReadoutSettings(mode="online", readout_layers="last"),
        )
    )
    depths: tuple[int, ...] = (2, 4, 8, 16)
    """Numbers of layers."""
    out: str | None = None
    """New folder for memory.json. Default: runs/bench-memory-DATE-TIME."""


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Peak bytes of one process; None, with the reason, where it failed."""

    depth: int
    what: What
    bytes: int | None
    trouble: str | None = None


def memory(arguments: list[str], console: Console) -> None:
    """Runs `launch bench memory` with these arguments. Raises UserError."""
    asked = parse(
        MemoryArguments,
        arguments,
        command="launch bench memory",
        default=MemoryArguments(),
        about="Peak memory against depth: of a stage that holds one layer, of the serial loop, of backprop.",
        first=("depths", "out", "data", "batch-size", "threads", "precision", "device"),
    )
    _check(asked)
    path = output_folder(asked.out, "bench-memory", run_dir=asked.settings.run_dir)
    specs = [_spec(asked.settings, depth) for depth in asked.depths]
    peaks: list[Peak] = []
    stopped = False
    try:
        for spec, what in itertools.product(specs, _ALL):
            peaks.append(measure(spec, what))
            held = peaks[-1].bytes
            said = f"{held / _MIB:,.0f} MiB" if held is not None else peaks[-1].trouble
            say(console, f"{spec.net.describe()}, {what}: {said}")
    except KeyboardInterrupt:
        stopped = True
    sentence = conclude(peaks)
    _print(console, peaks)
    say(console, sentence)
    path.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "format": 1,
        "command": command_line(),
        "settings": settings_module.to_dict(asked.settings),
        "machine": machine(),
        "stopped": stopped,
        "peaks": [dataclasses.asdict(peak) for peak in peaks],
        "conclusion": sentence,
    }
    (path / "memory.json").write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    say(console, f"report: {path}")
    if stopped:
        raise KeyboardInterrupt


def measure(spec: RunSpec, what: What) -> Peak:
    """The peak of a fresh process.

    Args:
        spec: a run with one layer in each stage.
    """
    depth, index = spec.num_layers, 0
    if what == "stage":
        index, shapes = 1, inputs_of_second_stage(spec)
    else:
        shapes = _images(spec, spec.settings.train.batch_size)
        spec = replace(spec, stages=partition(depth, 1)) if what == "serial" else backprop_spec(spec)
    name = f"{what} of {depth} layers"
    try:
        with Child[None, int](name, _work, spec, index, shapes) as child:
            return Peak(depth=depth, what=what, bytes=child.ask(None))
    except RunError as error:
        batch = spec.settings.train.batch_size
        advice = f"The batch was {batch} images. If memory ran out, a smaller --batch-size or --precision bf16 helps."
        return Peak(depth=depth, what=what, bytes=None, trouble=f"{as_flags(str(error))}. {advice}")


def inputs_of_second_stage(spec: RunSpec) -> Shapes:
    """What reaches stage 2 with a training batch, from what stage 1 makes of a few images."""
    sent: list[Message] = []
    images = _random(_images(spec, _FEW))
    first = Stage(spec, 0, torch.device("cpu"), report=lambda report: None, clock=Clock())
    first.handle(Message(Kind.TRAIN, tensors=images), sent.append)
    scale = spec.settings.train.batch_size // _FEW
    found: Shapes = {}
    for name, tensor in sent[0].tensors.items():
        found[name] = ((tensor.shape[0] * scale, *tensor.shape[1:]), tensor.dtype)
    return found


def conclude(peaks: list[Peak]) -> str:
    """How much each grows from the shallowest net to the deepest."""
    said = []
    for what, title in (("stage", "a stage of one layer"), ("serial", "the serial loop"), ("backprop", "backprop")):
        known = [(peak.depth, peak.bytes) for peak in peaks if peak.what == what and peak.bytes]
        if len(known) > 1:
            (least, small), (most, large) = min(known), max(known)
            said.append(f"{title} {large / small:.2f} times")
    if not said:
        return "Give several --depths to see what grows."
    return f"From {least} to {most} layers peak memory grows: " + ", ".join(said) + "."


def _check(asked: MemoryArguments) -> None:
    settings = asked.settings
    if not asked.depths or min(asked.depths) < 2:
        given = " ".join(map(str, asked.depths))
        raise UserError(f"--depths {given}: give numbers of layers, each at least 2, as a later stage is measured.")
    if "depth" not in {entry.name for entry in dataclasses.fields(settings.net)}:
        raise UserError(f"{settings.net.describe()} has no --depth to vary. Choose a ViT, an MLP or a mixer.")
    if settings.method.label_embeddings() is not None:
        raise UserError(
            f"{settings.method.kind}: its layers share label embeddings, which a single stage does not have. "
            "Measure with CFF."
        )
    if settings.train.batch_size % _FEW:
        raise UserError(f"--batch-size {settings.train.batch_size}: give an even one.")


def _spec(settings: Settings, depth: int) -> RunSpec:
    net: Any = settings.net
    pipe = replace(settings.pipeline, executor="ray", stages=depth, partition="even", transport="auto")
    settings = replace(settings, net=replace(net, depth=depth), pipeline=pipe)
    kind = local_devices(pipe.device, pipe.threads, pipe.precision).kind
    return build_run(settings, Devices(kind, depth))


def _work(spec: RunSpec, index: int, shapes: Shapes) -> Callable[[None], int]:
    """In a process of its own: a stage between two queues, as it is in a pipeline."""
    device = spec.stage_device(0)
    tensors = _random(shapes)
    configure_process(spec, device)
    _first_step(device)

    def answer(_: None) -> int:
        before = resident_bytes() if device.type == "cpu" else 0
        reset_peak(device)
        clock, pipe = Clock(), spec.settings.pipeline
        inbox, outbox = (
            LocalChannel(
                name, depth=pipe.depth, stall_timeout=pipe.stall_timeout, sender_clock=clock, receiver_clock=clock
            )
            for name in ("in", "out")
        )

        def feed() -> None:
            for step in range(_STEPS + pipe.depth):
                inbox.send(Message(Kind.TRAIN, 0, step, 0, last=False, tensors=tensors))
            inbox.send(Message(Kind.STOP))

        def drain() -> None:
            while outbox.receive().kind is not Kind.STOP:
                pass

        threads = [threading.Thread(target=work, daemon=True) for work in (feed, drain)]
        for thread in threads:
            thread.start()
        stage = Stage(spec, index, device, report=lambda report: None, clock=clock)
        stages.run(stage, inbox, outbox, clock)
        for thread in threads:
            thread.join()
        return peak_bytes(device) - before

    return answer


def _first_step(device: torch.device) -> None:
    """Has PyTorch load what it loads when it first learns: autograd, kernels, optimizers."""
    tiny = torch.nn.Linear(1, 1).to(device)
    optimizer = torch.optim.AdamW(tiny.parameters(), fused=True)
    tiny(torch.ones(1, 1, device=device)).sum().backward()
    optimizer.step()


def _images(spec: RunSpec, count: int) -> Shapes:
    number = ((count,), torch.int64)
    return {IMAGES: ((count, *spec.shape), torch.uint8), LABELS: number, IDS: number}


def _random(shapes: Shapes) -> dict[str, Tensor]:
    """Tensors of these shapes; labels alternate between two classes."""
    made = {}
    for name, (shape, dtype) in shapes.items():
        if name in (LABELS, IDS):
            made[name] = torch.arange(shape[0]) % 2
        elif dtype == torch.uint8:
            made[name] = torch.randint(0, 256, shape, dtype=dtype)
        else:
            made[name] = torch.randn(shape).to(dtype)
    return made


def _print(console: Console, peaks: list[Peak]) -> None:
    rows = []
    for depth in dict.fromkeys(peak.depth for peak in peaks):
        row = {peak.what: peak.bytes for peak in peaks if peak.depth == depth}
        held = [row.get(what) for what in _ALL]
        rows.append([str(depth), *("–" if each is None else f"{each / _MIB:,.0f}" for each in held)])
    title = "Peak memory, MiB, above a process that has made a first small step"
    print_table(console, ("layers", "a stage of one layer", "serial loop", "backprop"), rows, title=title)
