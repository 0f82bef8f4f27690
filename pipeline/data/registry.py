"""What a data set known by name is: its facts, where it comes from, how it is opened; and all there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.sources.base import Progress, Source


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """A file as its author published it."""

    name: str
    """File name, also the last part of its URL."""
    md5: str
    """Published md5 of the file's bytes."""
    raw_md5: str | None = None
    """md5 of the bytes inside a .gz: the same for any recompressed copy."""


@dataclass(frozen=True)
class DataLocation:
    """Where the published files of a data set were found.

    Attributes:
        path: the archive, or a folder with it or with its files, at any depth.
        origin: where they are from, in words.
        progress: called with (what is being done, done, total).
    """

    facts: DatasetFacts
    path: Path
    origin: str
    progress: Progress

    @property
    def note(self) -> str:
        """What the index says of a set whose files were checked."""
        return f"{self.facts.title}, from {self.origin}, md5s as published"

    @property
    def unchecked_note(self) -> str:
        """What it says where no md5 of the unpacked files is published."""
        return f"{self.facts.title}, from the unpacked folder {self.origin}, not checked by md5"


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """A data set known by name."""

    name: str
    title: str
    classes: tuple[str, ...]
    """Class names in label order; empty where only the source tells them (tiny-imagenet)."""
    num_classes: int
    shape: tuple[int, int, int]
    """(C, H, W) of every image."""
    mean: tuple[float, ...] | None = None
    """Per channel, of images in [0, 1]; None: use the prepared index's measured mean."""
    std: tuple[float, ...] | None = None
    """Per channel, of images in [0, 1]; None: use the prepared index's measured deviation."""
    crop_padding: int
    """Zero padding in pixels of the random crop; 0: no crop."""
    flip: bool
    """Whether a mirrored image keeps its label."""
    top_k: int = 1
    """Accuracy that Aghagolzadeh & Ezoji 2025 report for this set."""
    source: Callable[[], Source] | None = None
    """Opens a set that needs no files: that comes with an installed package, lies on the machine, or is computed."""
    open: Callable[[DataLocation], Source] | None = None
    """Opens any other one, where its published files were found. Raises UserError where they are not all there."""
    site: str | None = None
    """Official base URL of ``downloads``."""
    downloads: tuple[PublishedFile, ...] = ()
    """What ``launch prepare`` gets from the site."""
    accepted: tuple[PublishedFile, ...] = ()
    """Other published forms of the same data that ``source`` takes."""
    coarse_classes: tuple[str, ...] = ()
    """Names of the super-classes, where there are any; not used as labels."""

    @property
    def embedded(self) -> bool:
        """Whether it needs no download."""
        return self.source is not None

    def published(self) -> dict[str, PublishedFile]:
        """Every published file by name."""
        return {file.name: file for file in self.downloads + self.accepted}


class Datasets(dict[str, DatasetFacts]):
    """Data sets by name, in the order in which they were registered."""

    def register(self, facts: DatasetFacts) -> DatasetFacts:
        """Adds one. Raises ValueError where its name is taken, or where it does not say how it is opened."""
        if (facts.source is None) == (facts.open is None):
            raise ValueError(f"data set {facts.name!r}: give either source, which needs no files, or open")
        if self.setdefault(facts.name, facts) != facts:
            raise ValueError(f"two data sets are called {facts.name!r}: {self[facts.name].title}, and {facts.title}")
        return facts


DATASETS = Datasets()
"""Every data set by its name: those of ``pipeline.data.known``, and those of plug-ins."""
