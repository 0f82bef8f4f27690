"""A layer's part of a checkpoint: the layer itself, and what whoever trains it keeps of it. The same in every executor,
so that any other can go on from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipeline.checkpoints.folder import DamagedError, layer_file
from pipeline.layers.layer import LocalLayer
from pipeline.layers.state import Snapshot, State, below
from pipeline.layers.tallies import TrainTally
from pipeline.runtime.checkpointing import Resume


@dataclass
class Kept:
    """What is kept of some layers beside themselves.

    Attributes:
        candidates: weights at the validation of the epochs that may turn out the best.
        trained: weights and optimizers at the end of the layers' training, once that is over.
        tallies: of the training pass that is under way, for each layer; empty between passes.
        images: images in training batches so far.
    """

    candidates: dict[int, State] = field(default_factory=dict)
    trained: State | None = None
    tallies: list[TrainTally] = field(default_factory=list)
    images: int = 0


def parts_of(layers: Sequence[LocalLayer], kept: Kept) -> dict[str, Snapshot]:
    """What is saved of layers between two batches, by the name of its file. The tensors are the layers' own."""
    tallies: Sequence[TrainTally | None] = kept.tallies or [None] * len(layers)
    return {layer_file(layer.index): _part_of(layer, kept, tally) for layer, tally in zip(layers, tallies, strict=True)}


def _part_of(layer: LocalLayer, kept: Kept, tally: TrainTally | None) -> Snapshot:
    part, prefix = layer.snapshot(), f"layers.{layer.index}."
    for epoch, state in kept.candidates.items():
        part.tensors |= {f"candidates.{epoch}.{name}": value for name, value in below(state, prefix).items()}
    if kept.trained is not None:
        part.tensors |= {f"trained.{name}": value for name, value in below(kept.trained, prefix).items()}
    if tally is not None:
        tensors, part.values["skews"] = tally.snapshot()
        part.tensors |= {f"tally.{name}": value for name, value in tensors.items()}
    part.values |= {"layer": layer.index, "images": kept.images}
    return part


def go_on(layers: Iterable[LocalLayer], resume: Resume, *, readout: bool) -> Kept:
    """Gives layers what a checkpoint has of them, however they were divided when it was saved.

    Args:
        readout: whether it is the readouts that learn by now.

    Returns:
        What was kept beside them.

    Raises:
        DamagedError: a layer's part cannot be read, or is of another run.
    """
    kept = Kept()
    trained: State = {}
    for layer in layers:
        part, prefix = resume.layer(layer.index), f"layers.{layer.index}."
        try:
            layer.load_snapshot(part)
            for name, value in below(part.tensors, "candidates.").items():
                epoch, _, rest = name.partition(".")
                kept.candidates.setdefault(int(epoch), {})[prefix + rest] = value
            trained |= {prefix + name: value for name, value in below(part.tensors, "trained.").items()}
            if resume.cut.steps:
                tally = TrainTally(layer.index, readout=readout)
                losses = {name: value.to(layer.device) for name, value in below(part.tensors, "tally.").items()}
                tally.load_snapshot(losses, part.values["skews"])
                kept.tallies.append(tally)
            kept.images = int(part.values["images"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DamagedError(f"{layer_file(layer.index)} is not of this run ({error})") from error
    kept.trained = trained or None
    return kept
