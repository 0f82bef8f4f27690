"""`launch doctor costs NET …`: what one training step of a net takes: time, kernels, how busy the GPU is, memory.

A step is that of the serial loop: augmentation of random images, then every layer in turn. Each way (precision,
compiled or not) has a process of its own, so that none sees what another left. Busy time is that of the kernels in a
profile; its share is of the step's time without the profiler, which slows the CPU's side down.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterator, Sequence
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
from pipeline.config.settings import Compile, Graphs, Precision
from pipeline.errors import RunError, UserError
from pipeline.spawn import Child

COLUMNS = (
    *("net", "learning", "precision", "compiled", "graphs", "batch", "images/s", "ms a step"),
    "first step, s",
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
    compile: tuple[Literal["off", "on"], ...] = ("off", "on")
    """As the flag of a run."""
    graphs: tuple[Literal["off", "on"], ...] = ("off", "on")
    """As the flag of a run; on is a GPU's."""
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
    graphs: Graphs
    batch: int
    cost: StepCost | None
    trouble: str | None = None

    @property
    def way(self) -> str:
        """Which way it is, for people."""
        return f"{self.net}, {self.learning}, {self.precision}, compile {self.compile}, graphs {self.graphs}"

    def cells(self) -> list[str]:
        """As in ``COLUMNS``; only of one that was measured."""
        assert self.cost is not None, "asked for rows that were measured"
        cost = self.cost
        return [
            *(self.net, self.learning, self.precision, self.compile, self.graphs, f"{self.batch:,}"),
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
        said = f"{done.cells()[7]} ms" if done.cost is not None else done.trouble
        say(console, f"{done.way}: {said}")
        values = {
            "format": 1,
            "command": command_line(),
            "device": device,
            "machine": machine(),
            "rows": [asdict(row) for row in rows],
        }
        (folder / "costs.json").write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    print_table(console, COLUMNS, [row.cells() for row in rows if row.cost is not None], left=COLUMNS[:5])
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
            graphs=tuple(one for one in asked.graphs if one == "off"),
        )
    if not asked.precision or not asked.graphs:
        raise UserError("tf32 and graphs are a GPU's: on a CPU give --precision fp32 or bf16, and --graphs off.")
    if "on" in asked.compile:
        check_compiler(device)
    most = most_steps()
    return asked if most is None else replace(asked, steps=min(asked.steps, most))


def _ways(asked: CostsArguments, device: str) -> Iterator[CostRow]:
    """What is to be measured: first what is not compiled, then backprop, then what takes long to compile."""
    plain = [one for one in asked.compile if one == "off"]
    compiled = [one for one in asked.compile if one == "on"]

    def local(compile_: Sequence[Compile]) -> Iterator[tuple[Learning, Precision, Compile, Graphs]]:
        for how, graphs, precision in itertools.product(compile_, asked.graphs, asked.precision):
            yield "local", precision, how, graphs

    for net in asked.nets:
        batch = asked.batch_size or WORKLOADS[net].batch
        backprop: list[tuple[Learning, Precision, Compile, Graphs]] = [
            ("backprop", precision, "off", graphs)
            for graphs, precision in itertools.product(asked.graphs, asked.precision)
            if asked.backprop
        ]
        for learning, precision, how, graphs in [*local(plain), *backprop, *local(compiled)]:
            yield CostRow(
                net=net, learning=learning, precision=precision, compile=how, graphs=graphs, batch=batch, cost=None
            )


def _measure(row: CostRow, device: str, steps: int) -> CostRow:
    spec = spec_of(
        WORKLOADS[row.net],
        device=device,
        learning=row.learning,
        precision=row.precision,
        compile_=row.compile,
        graphs=row.graphs,
        batch=row.batch,
    )
    try:
        with Child[int, StepCost](f"{row.net}, {row.precision}", measured, spec) as child:
            return replace(row, cost=child.ask(steps))
    except RunError as error:  # out of memory, a compiler's failure: the other ways can still be measured
        return replace(row, trouble=as_flags(str(error)))
