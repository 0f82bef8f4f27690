"""What a preset is: a run's settings under a name, with what its paper reports for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from launch.presets.papers import Paper
from pipeline.config.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings under a name.

    Attributes:
        title: one line for lists.
        source: the paper that the method is from; None where it is unpublished.
        reported: the paper's figures in a few words, for lists; "" where it has none.
        paper: what the paper reports, row by row, and how to get each row.
        settings: the run, on the data set that it is for unless another is named.
        variants: the run on other data sets for which its paper has other hyperparameters, by the data set's name.
    """

    title: str
    source: Paper | None = None
    reported: str = ""
    paper: str = ""
    settings: Settings
    variants: Mapping[str, Settings] = field(default_factory=dict)

    def settings_for(self, data: str | None) -> Settings:
        """The run on a data set; None is the preset's own."""
        return self.variants.get(data or "", self.settings)
