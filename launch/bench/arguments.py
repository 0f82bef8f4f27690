"""The flags of `launch bench`, and what is refused of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from launch.bench.entries import THEIRS, chosen
from launch.bench.ours import rows_of
from launch.command_line.parse import shortened
from launch.output.run_folder import new_path
from pipeline.config import checks
from pipeline.config.settings import DataSettings, Settings
from pipeline.errors import UserError
from pipeline.methods import BaselineSettings, CffSettings
from pipeline.nets import VitSettings

DEFAULT = Settings(
    preset="bench",
    data=DataSettings(data="cifar10"),
    net=VitSettings(dim=128, heads=4, depth=4),
    method=CffSettings(views=1),
)
"""What rows train unless flags say otherwise. Rows choose method and views themselves."""


@dataclass(frozen=True, kw_only=True)
class BenchArguments:
    """Flags of the benchmark itself, beside those of a run."""

    settings: Settings = field(default_factory=lambda: DEFAULT)
    preset: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """A preset's net, method, data and batch in place of ViT and CFF. Rows of ours are then serial and pipelined, and
    --partition is balanced unless given."""
    devices: int | None = None
    """Devices that rows may use. Default: all. A CPU device is --threads threads."""
    rounds: int = 5
    """Turns of every row."""
    steps: int = 8
    """Measured steps of a turn."""
    warm: int = 2
    """Steps at the beginning of a turn that are not measured."""
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ROW …")] = ()
    """Rows that take part. Default: all."""
    without: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ROW …")] = ()
    """Rows that do not."""
    source: Literal["memory", "feeder", "both"] = "both"
    """Where images come from. memory: cached, taken by the device itself. feeder: read, shuffled and sent by another
    process. both: all rows from memory, and ddp, cff-1, cff-2 and pipelined once more with the feeder."""
    to_accuracy: float | None = None
    """Also the time to this validation accuracy in per cent: trains each method once until it has it. CFF's readout
    learns with the layers then, for which the default rate is low: with --readout-lr 5e-3 it keeps up with them."""
    max_epochs: int = 100
    """Epochs after which --to-accuracy gives up."""
    ablate: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Instead: one process, from a plain PyTorch loop upwards, each optimisation turned on in turn. --threads: all
    cores unless given."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """New folder for bench.json, bench.md, bench.png and bench.pdf. Default: runs/bench-DATE-TIME."""


def brief(asked: BenchArguments) -> BenchArguments:
    """One round of so many steps, where ``--max-steps`` or its variable asks for a quick look; others as they are.

    A turn's length is the benchmark's own, so the run's settings lose the bound.
    """
    settings = shortened(asked.settings)
    most = settings.train.max_steps
    if most is None:
        return asked
    settings = replace(settings, train=replace(settings.train, max_steps=None))
    return replace(
        asked, settings=settings, rounds=1, steps=min(asked.steps, most), warm=1, max_epochs=min(asked.max_epochs, most)
    )


def check(asked: BenchArguments) -> tuple[str, ...]:
    """Refuses what no machine could run; returns the names of the rows that take part. Raises UserError."""
    for flag, value in (("--rounds", asked.rounds), ("--steps", asked.steps), ("--warm", asked.warm)):
        if value < 1:
            raise UserError(f"{flag} {value}: give at least 1.")
    if asked.devices is not None and asked.devices < 1:
        raise UserError(f"--devices {asked.devices}: give at least 1, or leave it out to use all.")
    if asked.to_accuracy is not None and not 1 <= asked.to_accuracy <= 100:
        raise UserError(f"--to-accuracy {asked.to_accuracy:g}: give per cent, from 1 to 100.")
    if asked.max_epochs < 1:
        raise UserError(f"--max-epochs {asked.max_epochs}: give at least 1.")
    if asked.preset is not None:
        _check_preset(asked.preset, asked.settings)
    if asked.settings.baseline is not None:
        raise UserError(f"--baseline {asked.settings.baseline}: backprop takes part anyway; choose rows with --only.")
    return chosen(asked.only, asked.without, (*THEIRS, *rows_of(asked.preset)))


def _check_preset(name: str, settings: Settings) -> None:
    """Refuses what is no contest between a pipeline and backprop. Raises UserError."""
    if isinstance(settings.method, BaselineSettings):
        raise UserError(f"--preset {name}: backprop takes part anyway. Give one of a local method.")
    if len(settings.method.phases(checks.num_layers(settings))) > 1:
        raise UserError(f"--preset {name}: its layers learn one after another. Give one whose layers learn together.")


def output_folder(out: str | None, name: str, *, run_dir: str | None = None) -> Path:
    """Where a report goes: ``--out``, or ``--run-dir`` where it has a run's flags, or a new folder in runs/.

    Raises:
        UserError: the folder holds something, or both are given and differ.
    """
    if out is not None and run_dir is not None and out != run_dir:
        raise UserError(f"--out {out} and --run-dir {run_dir}: both say where the report goes. Give one of them.")
    if out is None:
        return new_path(run_dir, name)
    path = Path(out)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"--out {path} exists and holds something. Give a new folder, or remove this one.")
    return path
