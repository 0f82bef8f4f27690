"""What can be done with a run afterwards: evaluate it, ask it about images, export it."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from launch.console import counted, make_console, say, warn
from launch.layer_table import LayerRow, print_layers
from launch.runfolder import load_config
from launch.superclasses import print_superclasses, read_superclasses
from pipeline import load, resolve
from pipeline import settings as settings_module
from pipeline.data.augment import Augment
from pipeline.data.loader import Dataset
from pipeline.data.sources import images
from pipeline.determinism import settle
from pipeline.embeddings import VALUES, FixedEmbeddings
from pipeline.errors import UserError
from pipeline.evaluate import evaluate
from pipeline.export import Card, Network, network_of, read
from pipeline.layer import LocalLayer, State
from pipeline.messages import Kind
from pipeline.settings import Settings
from pipeline.spec import RunSpec
from pipeline.superclasses import evaluate as evaluate_superclasses
from pipeline.superclasses import require_embeddings


@dataclass(frozen=True, kw_only=True)
class OpenRun:
    """A run folder with its data, to be looked at here.

    Attributes:
        spec: the run as it would be on this machine's device, in one stage.
        weights, card: of ``model.safetensors``.
        device: to compute on.
    """

    spec: RunSpec
    dataset: Dataset
    weights: State
    card: Card
    device: torch.device

    def network(self) -> Network:
        """The trained network, on the device."""
        return network_of(self.weights, self.card).to(self.device)


def open_run(run: Path) -> OpenRun:
    """Opens a run folder and the data that it learned from, and sets this process's threads to the run's.

    Raises:
        UserError: no run folder, no weights, or data that are gone or have other classes. Other changes are warned of.
    """
    values = load_config(run)
    settings: Settings = settings_module.from_dict(values["settings"], source=str(run / "config.json"))
    here = replace(settings.pipeline, executor="serial", stages=1, transport="auto", device="auto")
    # A run that was cut short for a quick look is looked at whole.
    settings = replace(settings, pipeline=here, train=replace(settings.train, max_steps=None))
    file = run / "model.safetensors"
    weights, card = read(file)
    network_of(weights, card, source=str(file))  # says what is wrong with it, before data are opened
    dataset = _open_data(settings, values, card)
    if tuple(dataset.index.classes) != card.classes:
        raise UserError(
            f"{settings.data.data} has other classes than the run learned ({len(card.classes)}, such as "
            f"{card.classes[0]!r}). Use the data set that the run learned from."
        )
    if dataset.index.content_hash != values["data"]["content_hash"]:
        warn(f"{settings.data.data} is no longer what the run learned from; the figures will differ.")
    spec = resolve.place(resolve.resolve(settings, dataset), dataset, resolve.local_devices("auto", 1))
    for name, configured, trained in (
        ("net", spec.settings.net, card.net),
        ("method", spec.settings.method, card.method),
        ("head_norm", spec.settings.head.head_norm, card.head_norm),
    ):
        if configured != trained:
            raise UserError(
                f"{run}: config.json and model.safetensors are not of one run: {name} is {configured} in one and "
                f"{trained} in the other. Take both from the same run folder."
            )
    device = spec.stage_device(0)
    settle(spec, device)
    return OpenRun(spec=spec, dataset=dataset, weights=weights, card=card, device=device)


def _open_data(settings: Settings, values: dict[str, Any], card: Card) -> Dataset:
    """The run's data. A folder of images that is now brought to another size is taken as the run prepared it."""
    dataset = resolve.open_data(settings)
    if dataset.index.shape == card.shape:
        return dataset
    learned = Path(values["data"]["folder"])
    try:
        kept = resolve.open_folder(settings, learned)
    except UserError as error:
        height, width = card.shape[1:]
        raise UserError(
            f"{settings.data.data} gives images of {dataset.index.shape[1]}×{dataset.index.shape[2]}, the run learned "
            f"from {height}×{width}, and what it learned from is gone ({error})"
        ) from error
    if kept.index.shape != card.shape:
        raise UserError(f"{learned} has images of another size than the run learned from. Train again.")
    return kept


def evaluate_run(
    run: Path, console: Console, *, batch_size: int | None = None, superclasses: str | None = None
) -> None:
    """Test accuracy and Fisher criterion of every layer of a run, from its saved weights.

    Args:
        superclasses: also the accuracy on these super-classes: a known name or a file (launch/superclasses.py).
    """
    opened = open_run(run)
    spec, dataset, device = opened.spec, opened.dataset, opened.device
    groups = None
    if superclasses is not None:
        require_embeddings(spec.settings.method)
        groups = read_superclasses(superclasses, spec.classes)
    embeddings = FixedEmbeddings(opened.weights[VALUES], len(spec.classes)) if spec.has_shared_embeddings else None
    layers = [LocalLayer(spec, index, device, embeddings) for index in range(spec.num_layers)]
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
        say(console, "This run ended before its readouts were trained, so it has no accuracy.")
    if superclasses is not None and groups is not None:
        again = dataset.batches("test", epoch=0, batch_size=size)
        pairs = ((batch.images.to(device), batch.labels.to(device)) for batch in again)
        print_superclasses(console, superclasses, groups, evaluate_superclasses(opened.network(), pairs, groups))


def predict(run: Path, files: list[Path], console: Console, *, top: int = 3) -> None:
    """The most likely classes of images, from a run folder or an exported file.

    Raises:
        UserError: no image is given, there is no network, or images cannot be read: those of all others are printed
            before, and a line on standard error for each that cannot.
    """
    if not files:
        raise UserError(f"predict needs image files behind {run}. For example: launch predict {run} photo.jpg")
    if top < 1:
        raise UserError(f"--top {top}: give the number of classes to name, at least 1.")
    network = load(run / "model.safetensors" if run.is_dir() else run)
    if network.shape[0] not in (1, 3):
        raise UserError(
            f"This network takes images of {network.shape[0]} channels; only grey and colour files can be read."
        )
    opened: dict[Path, torch.Tensor] = {}
    unreadable: dict[Path, str] = {}
    for file in files:
        try:
            opened[file] = torch.from_numpy(images.read(file, network.shape).transpose(2, 0, 1).copy())
        except images.UNREADABLE as cause:
            unreadable[file] = images.why(cause)
    if opened:
        _print_predictions(console, network, opened, top)
    if unreadable:
        for file, why in unreadable.items():
            say(make_console(sys.stderr), f"{file}: {why}")
        raise UserError(f"{len(unreadable)} of {len(opened) + len(unreadable)} files could not be read.")


def _print_predictions(console: Console, network: Network, opened: dict[Path, torch.Tensor], top: int) -> None:
    """A line for each image (C, H, W) with its most likely classes."""
    with torch.no_grad():
        probabilities = network(torch.stack(list(opened.values()))).softmax(dim=1)
    for file, row in zip(opened, probabilities, strict=True):
        best = row.topk(min(top, len(row)))
        said = ", ".join(
            f"{network.classes[index]} {share:.1%}"
            for share, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        say(console, f"{file}: {said}")


def export(run: Path, file: Path, console: Console) -> None:
    """Copies a run's network to one file that ``pipeline.load`` reads without Ray."""
    if file.suffix != ".safetensors":
        raise UserError(f"{file}: give the file a name that ends in .safetensors.")
    if file.exists():
        raise UserError(f"{file} exists. Give another name, or remove it.")
    source = run / "model.safetensors"
    weights, card = read(source)
    part = file.with_name(f".{file.name}.part")
    try:
        shutil.copyfile(source, part)
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{file}: cannot be written ({error.strerror}). Choose another place.") from error
    parameters = sum(value.numel() for value in weights.values())
    say(
        console,
        f"{file}: {card.net.describe()} for {len(card.classes)} classes, {parameters:,} parameters, "
        f"{file.stat().st_size / 2**20:.1f} MiB. Load it with: from pipeline import load; load({str(file)!r})",
    )
