"""A table's entries as runs: flags of all runs put in, each run checked as `launch` would, before any has started."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from launch.command_line.parse import parse_words, peek
from launch.commands.train import checked
from launch.presets import PRESETS
from launch.reproduce.table import Entry
from launch.sweep.grid import SEED, in_a_name
from launch.sweep.runs import Needs, needs_of
from pipeline.config import build
from pipeline.config.checks import data_dir
from pipeline.config.saved import flattened
from pipeline.config.settings import PipelineSettings, Settings, to_dict
from pipeline.data import prepare
from pipeline.data.loader import Dataset
from pipeline.data.registry import DATASETS
from pipeline.errors import UserError

_ELSEWHERE = ("checkpoint.", "log", "plugins", "run_dir", "trace", "profile")
_NO_MATTER = frozenset(
    {
        *("data.data_dir", "data.strict_data", "data.memory_budget"),
        *(f"pipeline.{one.name}" for one in fields(PipelineSettings)),
    }
) - {f"pipeline.{name}" for name in ("precision", "threads", "transfer_dtype", "compile")}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A run of a table, for all its seeds.

    Attributes:
        name: that its folders begin with.
        words: what follows `launch`, but for the seed.
        settings: with the first seed.
        missing: its data set, where that is known by name and not prepared here.
    """

    name: str
    words: tuple[str, ...]
    settings: Settings
    missing: str | None

    def folder(self, seed: int) -> str:
        """The name of its folder with a seed."""
        return f"{self.name},{SEED}={seed}"

    def command(self, seed: int) -> list[str]:
        """What follows `launch`, with the seed."""
        return [*self.words, f"--{SEED}", str(seed)]


def wanted(entries: Sequence[Entry], flags: Sequence[str], *, first_seed: int) -> dict[str, Wanted]:
    """The runs of these entries, by the text with which entries name them.

    Args:
        flags: of every run; they take the place of the entries' own.

    Raises:
        UserError: a run that `launch` would refuse, or flags that make one run of two.
    """
    runs: dict[str, Wanted] = {}
    seen: dict[str, str] = {}
    for text in dict.fromkeys(text for entry in entries for text in (entry.run, entry.against) if text is not None):
        words = (*replaced(shlex.split(text), flags), *flags)
        settings = build.expand_baseline(parse_words([*words, f"--{SEED}", str(first_seed)]).run)
        other = seen.setdefault(repr(settings), text)
        if other != text:
            raise UserError(
                f"{shlex.join(flags)}: makes one run of two, of `launch {other}` and of `launch {text}`. Leave out "
                "what the table varies, or choose rows with --only."
            )
        missing = _missing(settings)
        if missing is None:
            checked(settings)
        runs[text] = Wanted(name=_name(text, entries), words=words, settings=settings, missing=missing)
    return runs


def replaced(words: Sequence[str], flags: Sequence[str]) -> list[str]:
    """An entry's words without those flags that are given for every run."""
    given = {_flag(group[0]) for group in _groups(flags)}
    preset, *rest = words
    return [preset, *(word for group in _groups(rest) if _flag(group[0]) not in given for word in group)]


def _groups(words: Sequence[str]) -> Iterator[list[str]]:
    """Flags, each with what follows it."""
    group: list[str] = []
    for word in words:
        if word.startswith("--") and group:
            yield group
            group = []
        group.append(word)
    if group:
        yield group


def _flag(word: str) -> str:
    """The name of a flag as typed: "--no-readout-norm" and "--readout_norm" both are "readout-norm"."""
    return word.partition("=")[0].removeprefix("--").replace("_", "-").removeprefix("no-")


def _name(run: str, entries: Sequence[Entry]) -> str:
    """By what all entries that are of a run are called; by its preset where they have nothing in common."""
    labels = [entry.labels for entry in entries if entry.run == run]
    common = [label for label, *others in zip(*labels, strict=True) if all(other == label for other in others)]
    return ",".join(in_a_name(label).strip("-") for label in common) or run.split(maxsplit=1)[0]


def own_data(run: str) -> str:
    """The data set that an entry's run is on, unless a flag says otherwise."""
    preset, *words = shlex.split(run)
    return peek(words, "--data") or PRESETS[preset].settings.data.data


def epochs_of(run: str) -> int:
    """The epochs that an entry's run has, unless a flag says otherwise."""
    preset, *words = shlex.split(run)
    given = peek(words, "--epochs")
    return int(given) if given else PRESETS[preset].settings_for(peek(words, "--data")).train.epochs


def _missing(settings: Settings) -> str | None:
    facts = DATASETS.get(settings.data.data)
    if facts is None or facts.embedded or prepare.is_prepared(facts.name, data_dir(settings)) is not None:
        return None
    return facts.name


def missing_in(runs: Mapping[str, Wanted]) -> list[str]:
    """Data sets that runs lack, in the runs' order."""
    return list(dict.fromkeys(run.missing for run in runs.values() if run.missing is not None))


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a run needs, and how much it is to do.

    Attributes:
        images: training images in all its epochs, in one view.
    """

    needs: Needs
    epochs: int
    images: int


def work_of(runs: Sequence[Wanted]) -> dict[str, Work]:
    """What each run that can be here comes to, by its name; runs that read the same images open them once.

    Raises:
        UserError, ResourcesError: as the first run would that cannot be.
    """
    opened: dict[object, Dataset] = {}
    found = {}
    for run in runs:
        settings = run.settings
        key = (settings.data, settings.train.max_steps, settings.train.last_batch)
        if key not in opened:
            opened[key] = build.open_data(settings)
        epochs = build.resolve(settings, opened[key]).train.epochs
        images = epochs * opened[key].images_per_pass("train", settings.train.batch_size)
        found[run.name] = Work(needs=needs_of(settings, opened[key]), epochs=epochs, images=images)
    return found


def numbers(settings: Settings) -> dict[str, Any]:
    """The settings that decide a run's figures, by their names."""
    return {
        name: value
        for name, value in flattened(to_dict(settings))
        if name not in _NO_MATTER and not name.startswith(_ELSEWHERE)
    }
