"""`launch completion SHELL`: what the shell needs to complete presets, commands, flags and their values."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import tyro

from launch.analyse.figures import Wishes
from launch.bench.arguments import BenchArguments
from launch.chaos.command import ChaosArguments
from launch.command_line.arguments import (
    AttachArguments,
    CheckpointArguments,
    CompareArguments,
    DashboardArguments,
    DownArguments,
    EvalArguments,
    ExportArguments,
    ListArguments,
    PredictArguments,
    PrepareArguments,
    ReproduceArguments,
    ResumeArguments,
    RunsArguments,
    TopArguments,
    TraceArguments,
)
from launch.command_line.parse import MARKERS, REGISTRY, RunArguments
from launch.doctor.command import DoctorArguments
from launch.plan.command import PlanArguments
from launch.presets import PRESETS
from launch.slurm.arguments import JobArguments
from pipeline.errors import UserError

Shell = Literal["bash", "zsh"]


@dataclass(frozen=True, kw_only=True)
class CompletionArguments:
    """What the shell needs to complete presets, commands, flags and their values."""

    shell: tyro.conf.Positional[Shell]


_HOW = {
    "bash": 'eval "$(launch completion bash)"                        in ~/.bashrc',
    "zsh": 'launch completion zsh > "${fpath[1]}/_launch"            once, then open a new shell',
}


def print_completion(arguments: list[str]) -> None:
    """Prints the script for a shell; tyro writes it from the flags' types.

    Raises:
        UserError: no shell, or one that tyro knows nothing of.
    """
    shells = get_args(Shell)
    if len(arguments) != 1 or arguments[0] not in shells:
        given = f"launch completion {' '.join(arguments)}".rstrip()
        raise UserError(f"{given}: name a shell, {' or '.join(shells)}. Use it so: {'; '.join(_HOW.values())}")
    kinds = {**{name: RunArguments(run=preset.settings) for name, preset in PRESETS.items()}, **_of_commands()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "completion")
        try:
            tyro.extras.subcommand_cli_from_dict(
                {name: _taking(kind) for name, kind in kinds.items()},
                prog="launch",
                args=["--tyro-write-completion", arguments[0], str(file)],
                config=MARKERS,
                registry=REGISTRY,
            )
        except SystemExit as done:  # tyro ends the program when it has written
            if done.code:
                raise
        sys.stdout.write(file.read_text())


def _of_commands() -> dict[str, Any]:
    """What each command takes."""
    return {
        "list": ListArguments,
        "prepare": PrepareArguments,
        "resume": ResumeArguments,
        "reproduce": ReproduceArguments,
        "checkpoint": CheckpointArguments,
        "attach": AttachArguments,
        "down": DownArguments,
        "top": TopArguments,
        "trace": TraceArguments,
        "runs": RunsArguments,
        "compare": CompareArguments,
        "dashboard": DashboardArguments,
        "eval": EvalArguments,
        "analyse": Wishes,
        "predict": PredictArguments,
        "export": ExportArguments,
        "plan": PlanArguments(run=PRESETS["cff-vit"].settings),
        "bench": BenchArguments,
        "doctor": DoctorArguments,
        "slurm": JobArguments,
        "chaos": ChaosArguments,
        "completion": CompletionArguments,
    }


def _taking(kind: Any) -> Callable[..., None]:
    """A function with the flags of a dataclass, given as its class or as an instance with the defaults."""

    def command(arguments: Any) -> None:
        raise AssertionError("asked for completion alone")

    def command_with_defaults(arguments: Any = kind) -> None:
        raise AssertionError("asked for completion alone")

    chosen = command if isinstance(kind, type) else command_with_defaults
    chosen.__annotations__["arguments"] = kind if isinstance(kind, type) else type(kind)
    return chosen
