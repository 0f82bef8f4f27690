"""From a checkpoint to a run that goes on from it: which one, and whether it is this run's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipeline.checkpoints.folder import CheckpointFolder, DamagedError, Manifest
from pipeline.config.run_spec import RunSpec
from pipeline.runtime.checkpointing import Checkpointing, Resume
from pipeline.runtime.passes import Cut, fits


def newest(folder: Path, *, passed_over: Callable[[str], None]) -> Manifest | None:
    """The newest checkpoint of a folder that is whole. Arguments and errors as ``CheckpointFolder.newest``."""
    return CheckpointFolder(folder).newest(passed_over=passed_over)


def cut_of(manifest: Manifest) -> Cut:
    """The place of a checkpoint. Raises DamagedError where it says none."""
    try:
        said = manifest.facts["cut"]
        return Cut(tuple(int(best) for best in said["restored"]), int(said["passes"]), int(said["steps"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"its manifest says no place in a run ({error})") from error


def going_on(spec: RunSpec, checkpointing: Checkpointing, folder: Path, manifest: Manifest) -> Checkpointing:
    """As ``checkpointing``, from this checkpoint. Raises DamagedError where the run has no such place."""
    cut = cut_of(manifest)
    if not fits(spec, cut):
        raise DamagedError(f"its place is none of this run ({cut})")
    seconds = {str(name): float(value) for name, value in dict(manifest.facts.get("seconds", {})).items()}
    return replace(checkpointing, resume=Resume(folder, manifest.key, cut), seconds=seconds)
