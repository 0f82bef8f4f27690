"""A trained network as one safetensors file and as a plain ``nn.Module``: no Ray, no pipeline, no run folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.layer import Readout, State
from pipeline.nets import Layer, NetSettings, Shape
from pipeline.spec import RunSpec

_FORMAT = 1
_KEY = "localpipe"


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a file of weights says about itself.

    Attributes:
        net: the net's settings.
        shape: (channels, height, width) of its images.
        classes: class names in the order of the scores.
        mean, std: of each channel, images scaled to 0 … 1.
        data: name of the data set it learned from.
        method: the learning method's settings, for the record.
    """

    net: NetSettings
    shape: Shape
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    data: str
    method: dict[str, Any]
    format: int = _FORMAT


_CARD = TypeAdapter(Card)


class Network(nn.Module):
    """A trained network: layers, each with the readout that was trained on it.

    Attributes:
        classes: class names in the order of the scores.
        shape: (channels, height, width) that ``forward`` takes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, card: Card, *, has_readouts: bool) -> None:
        super().__init__()
        self.classes, self.shape, self.card = card.classes, card.shape, card
        built: list[Layer] = [card.net.build(index, card.shape) for index in range(card.net.num_layers)]
        self.layers = nn.ModuleList(built)
        self.readouts = nn.ModuleList(
            [Readout(layer.features, len(card.classes)) for layer in built] if has_readouts else []
        )
        self.register_buffer("mean", torch.tensor(card.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(card.std)[:, None, None], persistent=False)

    def features(self, images: Tensor) -> list[Tensor]:
        """Pooled features (N, C) of every layer. Images (N, channels, H, W): uint8, or float scaled to 0 … 1."""
        x = images.float() / 255 if images.dtype == torch.uint8 else images
        x = (x - self.mean) / self.std
        pooled = []
        for layer in self.layers:
            assert isinstance(layer, Layer)
            x = layer(x)
            pooled.append(layer.pool(x))
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        """Scores (N, classes) of the last layer's readout; arguments as ``features``.

        Raises:
            UserError: the run ended before its readouts were trained.
        """
        scores: Tensor = self.layer_scores(images)[-1]
        return scores

    def layer_scores(self, images: Tensor) -> list[Tensor]:
        """Scores (N, classes) of every layer's readout; arguments and errors as ``forward``."""
        if not self.readouts:
            raise UserError(
                "This network has no readout: its run ended before one was trained. Use `features`, or finish the run."
            )
        return [readout(features) for readout, features in zip(self.readouts, self.features(images), strict=True)]


def card_of(spec: RunSpec) -> Card:
    """The card of a run's network."""
    return Card(
        net=spec.settings.net,
        shape=spec.shape,
        classes=spec.classes,
        mean=spec.augment.mean,
        std=spec.augment.std,
        data=spec.data_name,
        method=asdict(spec.settings.method),
    )


def save(file: Path, weights: State, card: Card) -> None:
    """Writes weights and card; the file is there whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    try:
        save_file({name: value.contiguous() for name, value in weights.items()}, part, metadata={_KEY: _dump(card)})
        part.chmod(0o644)  # safetensors leaves it to its owner alone
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def read(file: Path) -> tuple[State, Card]:
    """Weights and card of a file that ``save`` wrote. Raises UserError where it is not one."""
    advice = "Give a file written by `launch export`, or a run's model.safetensors."
    if not file.is_file():
        raise UserError(f"{file}: no such file. {advice}")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
        card = _CARD.validate_python(json.loads(metadata[_KEY]))
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError, ValidationError) as error:
        raise UserError(f"{file}: not a localpipe network ({type(error).__name__}: {error}). {advice}") from error
    if card.format != _FORMAT:
        raise UserError(f"{file}: format {card.format}, this version reads {_FORMAT}. Use the version that wrote it.")
    return weights, card


def load(file: str | Path) -> Network:
    """A trained network as a plain ``nn.Module`` in evaluation mode.

    >>> network = load("cifar10.safetensors")          # doctest: +SKIP
    >>> scores = network(images)                       # doctest: +SKIP
    >>> network.classes[scores[0].argmax()]            # doctest: +SKIP

    Args:
        file: written by ``launch export``, or ``model.safetensors`` of a run folder.

    Raises:
        UserError: no such file, or not a network of ours.
    """
    weights, card = read(Path(file))
    has_readouts = any(".readout." in name for name in weights)
    network = Network(card, has_readouts=has_readouts)
    renamed = {}
    for name, value in weights.items():
        _, index, part, rest = name.split(".", 3)
        renamed[f"{'layers' if part == 'net' else 'readouts'}.{index}.{rest}"] = value
    network.load_state_dict(renamed)
    return network.eval()


def _dump(card: Card) -> str:
    return _CARD.dump_json(card).decode()
