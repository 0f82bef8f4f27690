"""`launch eval`: accuracy and Fisher criterion of every layer of a finished run."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from launch.analyse.superclasses import print_superclasses, read_superclasses
from launch.output.console import counted, say
from launch.output.layer_table import LayerRow, print_layers
from launch.output.open_run import open_run
from pipeline.analysis.superclasses import evaluate as evaluate_superclasses
from pipeline.analysis.superclasses import require_embeddings
from pipeline.data.augment import Augment
from pipeline.kind import Kind
from pipeline.layers.evaluate import evaluate
from pipeline.layers.layer import LocalLayer
from pipeline.layers.shared_state import VALUES, FixedState


def evaluate_run(
    run: Path, console: Console, *, batch_size: int | None = None, superclasses: str | None = None
) -> None:
    """Test accuracy and Fisher criterion of every layer of a run, from its saved weights.

    Args:
        superclasses: also the accuracy on these super-classes: a known name or a file (launch/analyse/superclasses.py).
    """
    opened = open_run(run)
    spec, dataset, device = opened.spec, opened.dataset, opened.device
    groups = None
    if superclasses is not None:
        require_embeddings(spec.settings.method)
        groups = read_superclasses(superclasses, spec.classes)
    shared = FixedState(opened.weights[VALUES]) if spec.shared_versions is not None else None
    layers = [LocalLayer(spec, index, device, shared) for index in range(spec.num_layers)]
    for layer in layers:
        layer.load_weights({name: value.to(device) for name, value in opened.weights.items()})
    augment = Augment(spec.augment, seed=spec.settings.train.seed, device=device)
    size = batch_size or spec.settings.train.batch_size
    batches = dataset.batches("test", epoch=0, batch_size=size)
    report = evaluate(spec, layers, augment, batches, kind=Kind.TEST, epoch=0)

    rows = [
        LayerRow(
            layer=layer.layer + 1,
            readout=layer.accuracy if layer.has_readout else None,
            alone=layer.direct_accuracy,
            top_k=layer.top_k,
            fisher=layer.fisher,
            loss=layer.loss,
        )
        for layer in report.layers
    ]
    title = f"{spec.net.describe()} on {spec.data_name}, {counted(dataset.count('test'), 'test image')}"
    print_layers(console, rows, top_k=spec.top_k, loss="loss", title=title)
    if report.layers[-1].accuracy is None:
        without = spec.settings.readout.mode == "none"
        why = "has no readouts" if without else "ended before its readouts were trained"
        say(console, f"This run {why}, so it has no accuracy.")
    if superclasses is not None and groups is not None:
        again = dataset.batches("test", epoch=0, batch_size=size)
        pairs = ((batch.images.to(device), batch.labels.to(device)) for batch in again)
        print_superclasses(console, superclasses, groups, evaluate_superclasses(opened.network(), pairs, groups))
