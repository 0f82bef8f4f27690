"""TensorBoard's events, in the run folder itself: one writer, one run, one axis."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from launch.output.logs.base import RunFacts, Sink
from launch.output.logs.figures import LAYER, RUN, STAGE, Charts, Figure

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def layout(charts: Charts) -> dict[str, dict[str, list[object]]]:
    """Charts with a line for every stage, or every layer, for the tab Custom Scalars."""

    def each(names: Sequence[str], whose: str) -> dict[str, list[object]]:
        return {name: ["Multiline", [rf"^{name}/{whose} \d+$"]] for name in names}

    speed: dict[str, list[object]] = {
        "speed-up, measured and ideal": ["Multiline", [rf"^(measured|ideal) speed-up/{RUN}$"]],
        "images per second, whole run": ["Multiline", [rf"^images per second/{RUN}$"]],
        "seconds of an epoch": ["Multiline", [rf"^epoch seconds/{RUN}$"]],
    }
    return {"Stages": each(charts.stages, STAGE), "Layers": each(charts.layers, LAYER), "Whole run": speed}


class TensorBoard(Sink):
    """Scalars, charts that lay stages beside each other, settings with what they came to, pictures."""

    kind: ClassVar[str] = "tensorboard"

    def __init__(self, facts: RunFacts) -> None:
        super().__init__(facts)
        self._opened: SummaryWriter | None = None

    @property
    def _writer(self) -> SummaryWriter:
        """The writer, once there is something to write: it takes a second to import."""
        if self._opened is None:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

            self._opened = SummaryWriter(str(self.facts.folder))
            self._opened.add_custom_scalars(layout(self.facts.charts))
            config = json.dumps(self.facts.config, indent=2, ensure_ascii=False)
            self._opened.add_text("config.json", "\n".join(f"    {line}" for line in config.splitlines()))
        return self._opened

    def write(self, figures: Sequence[Figure]) -> None:
        for figure in figures:
            self._writer.add_scalar(figure.tag, figure.value, figure.step, figure.at)

    def picture(self, name: str, file: Path, step: int) -> None:
        import numpy as np  # noqa: PLC0415
        from PIL import Image  # noqa: PLC0415

        with Image.open(file) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def flush(self) -> None:
        if self._opened is not None:
            self._opened.flush()

    def finish(self, outcome: Mapping[str, float], step: int) -> None:
        if self._opened is None:  # the run had nothing to say
            return
        from torch.utils.tensorboard.summary import hparams  # noqa: PLC0415

        # ``add_hparams`` would open a second run for them.
        for summary in hparams(dict(self.facts.settings), dict.fromkeys(outcome, 0.0)):
            self._writer._get_file_writer().add_summary(summary)
        for name, value in outcome.items():
            self._writer.add_scalar(name, value, step)
        self._writer.close()
