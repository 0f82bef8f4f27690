"""A run that has ended, for whoever goes on with it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.config.run_spec import RunSpec
from pipeline.export import Network, card_of, network_of
from pipeline.runtime.history import History, RunResult


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that has ended, and what it left.

    Attributes:
        folder: where that lies, as `launch` leaves it.
        summary: every figure that was printed, under the names of ``summary.json`` (docs/summary.md).
    """

    spec: RunSpec
    result: RunResult
    folder: Path
    summary: dict[str, Any]

    @property
    def status(self) -> str:
        """ "finished", or "interrupted": then what was learned until then is kept."""
        return self.result.status

    @property
    def history(self) -> History:
        """Every layer's losses and accuracies, epoch by epoch."""
        return self.result.history

    @cached_property
    def network(self) -> Network:
        """The trained network, a plain ``nn.Module`` in evaluation mode, as ``pipeline.load`` gives it."""
        return network_of(self.result.weights, card_of(self.spec))

    def __repr__(self) -> str:
        accuracy = self.summary.get("test_accuracy")
        said = f", test accuracy {accuracy:.2%}" if accuracy is not None else ""
        return f"Run({str(self.folder)!r}, {self.status}{said})"
