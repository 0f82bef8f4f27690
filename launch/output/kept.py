"""What a failed run leaves of what it learned, in a sentence."""

from __future__ import annotations

from pathlib import Path

from launch.output.run_folder import CHECKPOINTS, MODEL, SALVAGED
from pipeline.checkpoints.folder import CheckpointFolder
from pipeline.runtime.history import RunResult


def kept(result: RunResult | None, folder: Path) -> str:
    """The last line of a run that failed; it looks at what is in the folder.

    Args:
        result: None where nothing could be had of the workers.
    """
    if checkpoint_in(folder):
        also = f", and the weights of its best epoch in {folder / MODEL}" if (folder / MODEL).is_file() else ""
        return f"Kept: the run's checkpoint{also}. Go on with: launch resume {folder}"
    best = None if result is None else result.best_epoch
    which = "the weights of the run" if best is None else f"the weights of epoch {best + 1}"
    if (folder / MODEL).is_file():
        return f"Kept: {which}, in {folder / MODEL}"
    if (folder / SALVAGED).is_file() and result is not None:
        return (
            f"Kept: what living workers held of {which}, in {folder / SALVAGED}. "
            f"Lost: {', '.join(result.lost)}; without that there is no {MODEL}"
        )
    if folder.exists():
        return f"Nothing was kept of what the run learned; its metrics and pictures are in {folder}"
    return "Nothing was kept: the run failed before its first epoch was over"


def checkpoint_in(folder: Path) -> bool:
    """Whether a run folder has a checkpoint to go on from."""
    return bool(CheckpointFolder(folder / CHECKPOINTS).whole())
