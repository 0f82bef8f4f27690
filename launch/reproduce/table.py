"""What a table is: rows with the run that each is of and the figures that the paper has there. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from launch.presets.papers import Paper
from launch.reproduce.measures import MEASURES, Measure


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row.

    Attributes:
        labels: what it is called, one for each of the table's headings.
        run: what follows `launch`: a preset and flags.
        paper: the paper's figures, by the names of ``MEASURES``; none where it has none.
        against: another run; measures that are differences take it off.
        layer: the layer that figures of one layer are of, from 1; None: the last.
    """

    labels: tuple[str, ...]
    run: str
    paper: Mapping[str, float] = field(default_factory=dict)
    against: str | None = None
    layer: int | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table or figure of a paper, or one of ours.

    Attributes:
        title: what it measures, in a line.
        source: the paper; None: it is ours.
        place: where in the paper: "Table 4".
        headings: of the labels of its entries.
        measures: what is reported of each entry, by the names of ``MEASURES``.
        seeds: runs of each entry unless --seeds says otherwise.
        notes: what a reader has to know to compare.
        picture: whether it is drawn: the first measure over the last label, which is a number.
    """

    title: str
    source: Paper | None = None
    place: str = ""
    headings: tuple[str, ...]
    measures: tuple[str, ...]
    entries: tuple[Entry, ...]
    seeds: int = 3
    notes: tuple[str, ...] = ()
    picture: bool = False

    @property
    def measured(self) -> list[tuple[str, Measure]]:
        """The measures with their names."""
        return [(name, MEASURES[name]) for name in self.measures]

    @property
    def where(self) -> str:
        """ "Choi et al. 2024, Table 3"; of one of ours "ours"."""
        return "ours" if self.source is None else f"{self.source.short}, {self.place}"
