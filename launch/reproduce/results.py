"""What the runs of a table came to: of every entry each measure's values over the seeds, beside the paper's."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.output.saved_runs import SavedRun
from launch.reproduce.grid import Wanted, own_data
from launch.reproduce.measures import Measure
from launch.reproduce.table import Entry, Table
from launch.sweep.runs import look


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measure of an entry.

    Attributes:
        values: of the seeds that have come to it.
        paper: what the paper has; None where it has none, or where its figure is not of these data.
    """

    measure: Measure
    values: Sequence[float]
    paper: float | None

    @property
    def mean(self) -> float | None:
        return statistics.mean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation of a sample; None of fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def difference(self) -> float | None:
        """The mean less the paper's."""
        return None if self.mean is None or self.paper is None else self.mean - self.paper


@dataclass(frozen=True, kw_only=True)
class Row:
    """An entry, and what its runs came to.

    Attributes:
        figures: by the measures' names.
        state: of its runs, in words: "3", "1 of 3 (2 not begun)", or what is missing.
        whole: all of its runs have finished, and those that it is compared with.
    """

    entry: Entry
    figures: Mapping[str, Figure]
    state: str
    whole: bool


def rows_of(
    table: Table, entries: Sequence[Entry], runs: Mapping[str, Wanted], seeds: Sequence[int], folder: Path
) -> list[Row]:
    """Every entry as it is now."""
    looked = {
        (text, seed): look(folder / run.folder(seed)) for text, run in runs.items() if not run.missing for seed in seeds
    }
    finished = {of: run for of, (status, run) in looked.items() if status == "finished" and run is not None}
    return [_row(table, entry, runs, seeds, looked, finished) for entry in entries]


def _row(
    table: Table,
    entry: Entry,
    runs: Mapping[str, Wanted],
    seeds: Sequence[int],
    looked: Mapping[tuple[str, int], tuple[str, SavedRun | None]],
    finished: Mapping[tuple[str, int], SavedRun],
) -> Row:
    run = runs[entry.run]
    other_data = run.settings.data.data != own_data(entry.run)
    figures = {
        name: Figure(
            measure=measure,
            values=[value for seed in seeds if (value := _value(measure, entry, seed, finished)) is not None],
            paper=None if other_data else entry.paper.get(name),
        )
        for name, measure in table.measured
    }
    if run.missing is not None:
        return Row(entry=entry, figures=figures, state=f"{run.missing} is not prepared", whole=False)
    counts = Counter(looked[entry.run, seed][0] for seed in seeds)
    done = counts.pop("finished", 0)
    others = ", ".join(f"{count} {status}" for status, count in counts.items())
    state = f"{done} of {len(seeds)} ({others})" if others else str(done)
    whole = all((text, seed) in finished for text in (entry.run, entry.against or entry.run) for seed in seeds)
    return Row(entry=entry, figures=figures, state=state, whole=whole)


def _value(measure: Measure, entry: Entry, seed: int, finished: Mapping[tuple[str, int], SavedRun]) -> float | None:
    run = finished.get((entry.run, seed))
    value = measure.read(run, entry.layer) if run is not None else None
    if value is None or not measure.is_difference:
        return value
    against = finished.get((entry.against, seed)) if entry.against is not None else None
    base = measure.read(against, entry.layer) if against is not None else None
    return None if base is None else value - base
