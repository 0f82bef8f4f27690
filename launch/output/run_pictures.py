"""Pictures of every run: learning curves, and of a pipelined one the schedule as it was measured.

curves.png     loss and accuracy of every layer over the epochs; with a readout trained afterwards, its cross-entropy
pipeline.png   which stage worked on which batch when, at the beginning of the run and in its middle
trace.png      of a run that was traced, what each stage did with some batches
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from launch.output.summary import best_by
from launch.output.timeline import Recorder, Window
from launch.output.trace_picture import trace_figure
from pipeline.config.run_spec import RunSpec
from pipeline.kind import Kind
from pipeline.runtime.history import History
from pipeline.telemetry.reports import LayerReport, PassReport

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.figure import Figure

    from launch.output.pictures import Panel, Vector

_VECTORS: Mapping[str, tuple[Vector, ...]] = {"curves": ("pdf",), "pipeline": ("pdf", "svg"), "trace": ("svg",)}


class RunPictures:
    """Follows a run and draws it at its end."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._history, self._recorder = History.of(spec), Recorder()

    def observe(self, report: PassReport) -> None:
        """Takes a pass's report."""
        self._history.add(report)
        self._recorder.observe(report)

    def divide(self, spec: RunSpec) -> None:
        """The run goes on in the stages of ``spec``: its schedule is drawn from there on."""
        self._spec, self._recorder = spec, Recorder()

    def write(self, folder: Path, *, traced: bool = False, warn: Callable[[str], None]) -> list[Path]:
        """Draws what the run came to, each picture as PNG and in vectors. What cannot be drawn is said, and no more.

        Returns the PNGs.

        Args:
            traced: the run has left a trace in the folder.
        """
        written: list[Path] = []
        drawn: dict[str, Callable[[], Figure | None]] = {}
        if self._history.epochs(Kind.TRAIN):
            drawn |= {"curves": self.curves, "pipeline": self.pipeline}
        if traced:
            drawn["trace"] = partial(trace_figure, folder)
        for name, draw in drawn.items():
            try:
                from launch.output import pictures  # noqa: PLC0415 (matplotlib takes a second to import)

                figure = draw()
                if figure is not None:
                    pictures.write(figure, folder / f"{name}.png", *_VECTORS[name])
                    written.append(folder / f"{name}.png")
            except Exception as error:  # noqa: BLE001 (whatever it is, a run is worth more than its picture)
                warn(f"{folder / name}.png: could not be drawn ({type(error).__name__}: {error}).")
        return written

    def curves(self) -> Figure:
        """The learning curves."""
        from launch.output import pictures  # noqa: PLC0415 (as above)

        return pictures.curves(self.panels(), title=self._title(), num_layers=self._spec.num_layers)

    def pipeline(self) -> Figure | None:
        """The measured schedule; None where no stage told its steps' times, as in the serial loop."""
        from launch.output import pictures  # noqa: PLC0415 (as above)

        windows = self.windows()
        if not windows:
            return None
        settings = self._spec.settings
        names = [
            f"stage {number + 1}\nlayer{f's {layers[0] + 1}-' if len(layers) > 1 else ' '}{layers[-1] + 1}"
            for number, layers in enumerate(self._spec.stages)
        ]
        title = f"{self._net_on_data()}, batches of {settings.train.batch_size}, as measured"
        return pictures.timeline(windows, [self._window_title(window) for window in windows], names, title=title)

    def windows(self) -> list[Window]:
        """The stretches of the run that ``pipeline`` draws."""
        return self._recorder.windows(self._spec.num_stages, len(self._history.epochs(Kind.TRAIN)))

    def panels(self) -> list[Panel]:
        """What ``curves`` draws: figures that no layer has are left out."""
        from launch.output.pictures import Panel  # noqa: PLC0415 (as above)

        keep, best = self._spec.settings.train.keep, self._history.best_epoch
        kept = None if best is None else best + 1
        found = [
            self._panel("training loss", Kind.TRAIN, lambda layer: layer.loss),
            self._panel("validation loss", Kind.VALIDATE, lambda layer: layer.loss),
            self._panel("validation accuracy", Kind.VALIDATE, lambda layer: layer.accuracy),
        ]
        judged = {"loss": "validation loss", "accuracy": "validation accuracy", "last": None}[keep]
        panels = [
            Panel(
                title=title,
                epochs=epochs,
                layers=layers,
                percent="accuracy" in title,
                best=kept,
                chose=kept is not None and title == judged,
            )
            for title, epochs, layers in found
            if layers
        ]
        for title, epochs, layers in (
            self._panel("readouts: cross-entropy", Kind.READOUT, lambda layer: layer.loss),
            self._panel("readouts: validation cross-entropy", Kind.JUDGE, lambda layer: layer.readout_loss),
        ):
            if layers:
                panels.append(Panel(title=title, epochs=[number - epochs[0] + 1 for number in epochs], layers=layers))
        return panels

    def _panel(
        self, title: str, kind: Kind, figure: Callable[[LayerReport], float | None]
    ) -> tuple[str, list[int], dict[int, list[float]]]:
        """A figure of every layer that has it, by layer number, in the epochs in which all have finished the pass."""
        epochs = self._history.epochs(kind)
        passes = [self._history.layers(kind, epoch) or [] for epoch in epochs]
        values = {
            index + 1: [math.nan if (value := figure(layers[index])) is None else value for layers in passes]
            for index in range(self._spec.num_layers)
        }
        known = {layer: said for layer, said in values.items() if any(math.isfinite(value) for value in said)}
        return title, [epoch + 1 for epoch in epochs], known

    def _title(self) -> str:
        train, trained = self._spec.settings.train, len(self._history.epochs(Kind.TRAIN))
        lines = [f"{self._net_on_data()}, {trained} of {self._spec.epochs} epochs"]
        if self._history.best_epoch is not None:
            lines.append(f"kept: epoch {self._history.best_epoch + 1}, {best_by(self._spec)} (--keep {train.keep})")
        return "\n".join(lines)

    def _window_title(self, window: Window) -> str:
        numbers = [step.batch + 1 for stage in window.stages for step in stage if step.begin < window.end]
        when = "beginning" if window.filling else "middle"
        return f"{when} of the run: epoch {window.epoch + 1}, batches {min(numbers)} to {max(numbers)}"

    def _net_on_data(self) -> str:
        return f"{self._spec.net.describe()} on {self._spec.data_name}"
