"""What can be done with a run afterwards: evaluate it, ask it about images, export it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from launch.output.console import warn
from launch.output.run_folder import load_config
from pipeline.config import build, checks
from pipeline.config import settings as settings_module
from pipeline.config.build import build_run
from pipeline.config.devices import has_precision, local_devices
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import Settings
from pipeline.data.loader import Dataset
from pipeline.errors import UserError
from pipeline.export import Card, Network, network_of, read
from pipeline.layers.state import State
from pipeline.runtime.process import configure_process


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
    here = replace(settings.pipeline, executor="serial", stages=1, partition="even", transport="auto", device="auto")
    # A run that was cut short for a quick look is looked at whole.
    settings = replace(settings, pipeline=here, train=replace(settings.train, max_steps=None))
    try:
        checks.check(settings)
    except UserError as error:
        raise UserError(f"{run / 'config.json'}: {error}") from error
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
    devices = local_devices("auto", 1)
    if devices.kind == "cuda" and not has_precision(here.precision, torch.device("cuda", 0)):
        warn(f"The GPU is too old for the run's precision, {here.precision}: the CPU computes in its place.")
        devices = local_devices("cpu", 1)
    if devices.kind == "cpu" and here.precision == "tf32":  # float32 of which a CPU rounds nothing away
        settings = replace(settings, pipeline=replace(settings.pipeline, precision="fp32"))
    spec = build_run(settings, devices, dataset=dataset)
    for name, configured, trained in (
        ("net", spec.settings.net, card.net),
        ("method", spec.settings.method, card.method),
        ("readout_norm", spec.settings.readout.readout_norm, card.readout_norm),
    ):
        if configured != trained:
            raise UserError(
                f"{run}: config.json and model.safetensors are not of one run: {name} is {configured} in one and "
                f"{trained} in the other. Take both from the same run folder."
            )
    device = spec.stage_device(0)
    configure_process(spec, device)
    return OpenRun(spec=spec, dataset=dataset, weights=weights, card=card, device=device)


def _open_data(settings: Settings, values: dict[str, Any], card: Card) -> Dataset:
    """The run's data. A folder of images that is now brought to another size is taken as the run prepared it."""
    dataset = build.open_data(settings)
    if dataset.index.shape == card.shape:
        return dataset
    learned = Path(values["data"]["folder"])
    try:
        kept = build.open_folder(settings, learned)
    except UserError as error:
        height, width = card.shape[1:]
        raise UserError(
            f"{settings.data.data} gives images of {dataset.index.shape[1]}×{dataset.index.shape[2]}, the run learned "
            f"from {height}×{width}, and what it learned from is gone ({error})"
        ) from error
    if kept.index.shape != card.shape:
        raise UserError(f"{learned} has images of another size than the run learned from. Train again.")
    return kept
