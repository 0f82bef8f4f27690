"""What a failed run leaves of what it learned, in a sentence."""

from __future__ import annotations

from pathlib import Path

from launch.output.run_folder import MODEL, SALVAGED
from pipeline.runtime.history import RunResult


def kept(result: RunResult | None, folder: Path) -> str:
    """The last line of a run that failed; it looks at what is in the folder.

    Args:
        result: None where nothing could be had of the workers.
    """
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
