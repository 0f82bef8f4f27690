"""`launch doctor costs NET …`: what one training step of a net takes: time, kernels, how busy the GPU is, memory.

A step is that of the serial loop: augmentation of random images, then every layer in turn. Each way (precision,
compiled or not) has a process of its own, so that none sees what another left. Busy time is that of the kernels in a
profile; its share is of the step's time without the profiler, which slows the CPU's side down.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from launch.bench.arguments import output_folder
from launch.command_line.parse import most_steps, parse, unknown
from launch.command_line.setting_names import as_flags
from launch.doctor.step_cost import StepCost, measured
from launch.doctor.workloads import WORKLOADS, Learning, spec_of
from launch.output.console import say
from launch.output.run_folder import command_line
from launch.output.summary import machine
from launch.output.tables import print_table
from pipeline.config.compiler import check_compiler
from pipeline.config.devices import local_devices
from pipeline.config.settings import Compile, Precision
from pipeline.errors import RunError, UserError
from pipeline.spawn import Child

COLUMNS = (
    *("net", "learning", "precision", "compiled", "batch", "images/s", "ms a step", "first step, s"),
    *("kernels", "launches", "operators", "busy ms", "busy", "peak MiB", "parameters"),
)


@dataclass(frozen=True, kw_only=True)
class CostsArguments:
    """What one training step takes: its time, kernels or operators, how long of it the device computes, and memory.
    Images are random. Nets: vit-128, vit-128-two-views, vit-240, vit-b-224; by DCL resnet32, vgg8b; with auxiliary nets
    vgg8b-ll-cont, vgg8b-ll-contrec, resnet32-auglocal."""

    nets: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NET …")] = ("vit-128",)
    """Nets to measure."""
    precision: tuple[Precision, ...] = ("fp32", "tf32", "bf16")
    """Of the matrix products. tf32: a GPU's, of float32 products and convolutions; with fp32 neither has it."""
    compile: tuple[Literal["off", "on", "graphs"], ...] = ("off", "on", "graphs")
    """As the flag of a run. graphs: a GPU's."""
    backprop: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also the same net by backpropagation, as one piece, not compiled."""
    batch_size: int | None = None
    """Images of a step. Default: the net's."""
    steps: int = 20
    """Measured steps of each of three rounds."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """New folder for costs.json. Default: runs/doctor-costs-DATE-TIME."""


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """A way to make a step, and what it costs; ``cost`` is None, with the reason, where it cannot be made."""

    net: str
    learning: Learning
    precision: Precision
    compile: Compile
    batch: int
    cost: StepCost | None
    trouble: str | None = None

    def cells(self) -> list[str]:
        """As in ``COLUMNS``; only of one that was measured."""
        assert self.cost is not None, "asked for rows that were measured"
        cost = self.cost
        return [
            *(self.net, self.learning, self.precision, self.compile, f"{self.batch:,}"),
            f"{self.batch / statistics.median(cost.seconds):,.0f}",
            f"{1e3 * statistics.median(cost.seconds):,.2f}",
            f"{cost.first_seconds:,.1f}",
            "–" if cost.kernels is None else f"{cost.kernels:,.0f}",
            "–" if cost.launches is None else f"{cost.launches:,.0f}",
            f"{cost.operators:,.0f}",
            f"{1e3 * cost.busy_seconds:,.2f}",
            f"{100 * cost.busy_share:.0f} %",
            f"{cost.peak_bytes / 2**20:,.0f}",
            " + ".join(f"{count:,}" for count in cost.parameters if count) or "–",
        ]


def costs(arguments: list[str], console: Console) -> None:
    """Runs `launch doctor costs` with these arguments. What is measured is written at once. Raises UserError."""
    asked = parse(CostsArguments, arguments, command="launch doctor costs")
    device = local_devices(asked.device, 1).kind
    asked = _checked(asked, device)
    folder = output_folder(asked.out, "doctor-costs")
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[CostRow] = []
    for row in _ways(asked, device):
        rows.append(_measure(row, device, asked.steps))
        done = rows[-1]
        said = f"{done.cells()[6]} ms" if done.cost is not None else done.trouble
        say(console, f"{done.net}, {done.learning}, {done.precision}, compile {done.compile}: {said}")
        values = {
            "format": 1,
            "command": command_line(),
            "device": device,
            "machine": machine(),
            "rows": [asdict(row) for row in rows],
        }
        (folder / "costs.json").write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    print_table(console, COLUMNS, [row.cells() for row in rows if row.cost is not None], left=COLUMNS[:4])
    say(console, f"report: {folder}")
    if all(row.cost is None for row in rows):
        raise RunError("no way to make a step worked: the lines above say why.")


def rows_of(file: Path) -> list[CostRow]:
    """The rows of a costs.json."""
    found = []
    for values in json.loads(file.read_text())["rows"]:
        cost = values["cost"]
        if cost is not None:
            parameters = tuple(cost.get("parameters", ()))  # a file of an earlier version has none
            cost = StepCost(**cost | {"seconds": tuple(cost["seconds"]), "parameters": parameters})
        found.append(CostRow(**values | {"cost": cost}))
    return found


def _checked(asked: CostsArguments, device: str) -> CostsArguments:
    for name in asked.nets:
        if name not in WORKLOADS:
            raise UserError(unknown(name, WORKLOADS, "net") + f" Nets: {', '.join(WORKLOADS)}.")
    if asked.batch_size is not None and asked.batch_size < 2:
        raise UserError(f"--batch-size {asked.batch_size}: a contrastive loss needs at least 2.")
    if asked.steps < 1:
        raise UserError(f"--steps {asked.steps}: give at least 1.")
    if device == "cpu":
        asked = replace(
            asked,
            precision=tuple(one for one in asked.precision if one != "tf32"),
            compile=tuple(one for one in asked.compile if one != "graphs"),
        )
    if not asked.precision or not asked.compile:
        raise UserError("tf32 and graphs are a GPU's: on a CPU give --precision fp32 or bf16, --compile off or on.")
    if "on" in asked.compile or "graphs" in asked.compile:
        check_compiler(device)
    most = most_steps()
    return asked if most is None else replace(asked, steps=min(asked.steps, most))


def _ways(asked: CostsArguments, device: str) -> Iterator[CostRow]:
    """What is to be measured: first what is not compiled, then backprop, then what takes long to compile."""
    plain = [one for one in asked.compile if one == "off"]
    compiled = [one for one in asked.compile if one != "off"]
    for net in asked.nets:
        batch = asked.batch_size or WORKLOADS[net].batch
        ways: list[tuple[Learning, Precision, Compile]] = [
            *(("local", precision, how) for how, precision in itertools.product(plain, asked.precision)),
            *(("backprop", precision, "off") for precision in asked.precision if asked.backprop),
            *(("local", precision, how) for how, precision in itertools.product(compiled, asked.precision)),
        ]
        for learning, precision, how in ways:
            yield CostRow(net=net, learning=learning, precision=precision, compile=how, batch=batch, cost=None)


def _measure(row: CostRow, device: str, steps: int) -> CostRow:
    spec = spec_of(
        WORKLOADS[row.net],
        device=device,
        learning=row.learning,
        precision=row.precision,
        compile_=row.compile,
        batch=row.batch,
    )
    try:
        with Child[int, StepCost](f"{row.net}, {row.precision}", measured, spec) as child:
            return replace(row, cost=child.ask(steps))
    except RunError as error:  # out of memory, a compiler's failure: the other ways can still be measured
        return replace(row, trouble=as_flags(str(error)))
