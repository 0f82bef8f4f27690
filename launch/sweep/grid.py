"""The points of a sweep: settings and their values as they were typed, every combination, each with every seed.

Pure: texts go in, points come out. What a value means is told by the parser that reads a run's flags.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from launch.command_line.flags import Flag
from launch.command_line.parse import unknown
from pipeline.errors import UserError

SEED = "seed"
_NOT_SWEPT = {
    "run-dir": "it says where the sweep goes",
    "address": "all runs of a sweep are where it is",
    "mirror": "each run of a sweep has a folder of its own there",
}
_DIGITS = 4
_NO_NAME = re.compile(r"[^\w.+=,-]+")
SWITCHED = {"on": "--{}", "off": "--no-{}"}
"""What may be typed for a switch, and the flag that it becomes."""


def in_a_name(text: str) -> str:
    """As it stands in a folder's name."""
    return _NO_NAME.sub("-", text)


@dataclass(frozen=True)
class Axis:
    """A setting, by its flag's name without dashes in front, and its values as typed."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """Values of all axes, without the seed."""

    values: Mapping[str, str]

    @property
    def name(self) -> str:
        """For people: "lr=1e-3, depth=4"; "as given" where nothing but the seed changes."""
        return ", ".join(f"{name}={value}" for name, value in self.values.items()) or "as given"

    def run_name(self, seed: int) -> str:
        """The name of the folder of its run with a seed: "lr=1e-3,depth=4,seed=0"."""
        parts = [f"{name}={in_a_name(value)}" for name, value in self.values.items()]
        return ",".join([*parts, f"{SEED}={seed}"])

    def flags(self, switches: frozenset[str], seed: int) -> list[str]:
        """What is typed for its run with a seed.

        Args:
            switches: settings that are on or off.
        """
        found = []
        for name, value in self.values.items():
            found += [SWITCHED[value].format(name)] if name in switches else [f"--{name}", *shlex.split(value)]
        return [*found, f"--{SEED}", str(seed)]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A sweep's axes, and the seeds of every point."""

    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]

    def points(self) -> Iterator[Point]:
        """Every combination, the last axis fastest."""
        for values in itertools.product(*(axis.values for axis in self.axes)):
            yield Point(dict(zip((axis.name for axis in self.axes), values, strict=True)))


def read_grid(texts: Sequence[str] | None, seeds: str | None, *, first_seed: int, flags: Mapping[str, Flag]) -> Grid:
    """A grid from what follows --sweep and --seeds.

    Args:
        texts: "lr=1e-3,4e-3", one for each axis; None: no --sweep. A setting that takes several values has them with
            spaces between, as a shell would split them.
        seeds: how many, as typed; None: no --seeds.
        first_seed: the seed that the run has without a sweep.
        flags: the settings that the run takes, by their flags' names.

    Raises:
        UserError: a setting that there is not, or none to be swept; no values, or one twice; no number of seeds.
    """
    if texts is not None and not texts:
        raise UserError("--sweep: give a setting and its values, as in --sweep lr=1e-3,4e-3.")
    axes = [_axis(text, flags) for text in texts or ()]
    names = [axis.name for axis in axes]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"--sweep {twice}: is given twice. Give all its values at once: {twice}=A,B,C.")
    count = read_count("--seeds", seeds) if seeds is not None else None
    own = next((axis for axis in axes if axis.name == SEED), None)
    if own is None:
        return Grid(axes=tuple(axes), seeds=tuple(range(first_seed, first_seed + (count or 1))))
    if count is not None:
        raise UserError("--seeds and --sweep seed=…: give one of them.")
    if wrong := next((value for value in own.values if not value.isdecimal()), None):
        raise UserError(f"--sweep seed={wrong}: a seed is a whole number from 0.")
    return Grid(axes=tuple(axis for axis in axes if axis is not own), seeds=tuple(map(int, own.values)))


def _axis(text: str, flags: Mapping[str, Flag]) -> Axis:
    typed, _, said = text.partition("=")
    name = typed.lstrip("-").replace("_", "-")
    values = tuple(value.strip() for value in said.split(","))
    if name not in flags:
        raise UserError(f"--sweep {text}: {unknown(name, flags, 'setting')}")
    if name in _NOT_SWEPT:
        raise UserError(f"--sweep {text}: {_NOT_SWEPT[name]}. Give --{name} beside --sweep.")
    if not all(values):
        raise UserError(f"--sweep {text}: a value is missing. Give them as in --sweep lr=1e-3,4e-3.")
    if wrong := next((value for value in values if not _is_value(value)), None):
        raise UserError(
            f"--sweep {text}: {wrong} is no value. One with spaces in it needs quotes: --sweep \"data='a b'\"."
        )
    if twice := next((value for value in values if values.count(value) > 1), None):
        raise UserError(f"--sweep {text}: {twice} is there twice.")
    if flags[name].switch != "no" and (wrong := next((value for value in values if value not in SWITCHED), None)):
        raise UserError(f"--sweep {text}: {name} is on or off, not {wrong}.")
    return Axis(name, values)


def _is_value(typed: str) -> bool:
    """Whether a shell would make words of it that are no flags."""
    try:
        return not any(word.startswith("--") for word in shlex.split(typed))
    except ValueError:  # a quote that is not closed
        return False


def read_count(flag: str, typed: str) -> int:
    """A number from 1 to 9999. Raises UserError where it is none."""
    if not typed.isdecimal() or len(typed) > _DIGITS or int(typed) < 1:
        raise UserError(f"{flag} {typed[:40]}: must be a whole number from 1 to {'9' * _DIGITS}.")
    return int(typed)
