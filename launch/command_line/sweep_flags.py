"""The flags that make a sweep of a run. They are taken off the arguments before the run's own are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launch.command_line.flags import Flag
from launch.command_line.options import take_options, take_series

SWEEP_FLAGS = (
    Flag(
        name="sweep",
        values="NAME=V1,V2 …",
        default=None,
        text="A run for each value of a setting, or combination of several, and one table. The same command with "
        "--run-dir goes on with it.",
        group="",
    ),
    Flag(
        name="seeds",
        values="N",
        default=None,
        text="N runs of each, with seeds from --seed on.",
        group="",
    ),
    Flag(
        name="at-once",
        values="N",
        default=None,
        text="Runs of a sweep beside each other at most. Default: as many as there are devices for, on a cluster one.",
        group="",
    ),
)


@dataclass(frozen=True, kw_only=True)
class SweepFlags:
    """What was typed; None where a flag was not given.

    Attributes:
        sweep: one text for each setting: "lr=1e-3,4e-3".
    """

    sweep: Sequence[str] | None
    seeds: str | None
    at_once: str | None

    @property
    def asked(self) -> bool:
        """Whether there is to be a sweep."""
        return self.sweep is not None or self.seeds is not None or self.at_once is not None


def take_sweep(arguments: list[str]) -> tuple[SweepFlags, list[str]]:
    """Takes these flags off the arguments. Returns what they said, and the arguments that are left.

    Raises:
        UserError: nothing follows one that takes a number.
    """
    sweep, rest = take_series(arguments, "--sweep")
    seeds, rest = take_options(rest, "--seeds", "a number of seeds, as in --seeds 3")
    at_once, rest = take_options(rest, "--at-once", "a number of runs, as in --at-once 2")
    given = SweepFlags(sweep=sweep, seeds=next(reversed(seeds), None), at_once=next(reversed(at_once), None))
    return given, rest
