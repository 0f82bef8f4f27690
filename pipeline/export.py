"""A trained network as one safetensors file and as a plain ``nn.Module``: no Ray, no pipeline, no run folder."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pipeline import plain_json
from pipeline.config import checks
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import Precision, TransferDtype, renamed
from pipeline.data.augment import normalize_, shift_and_scale
from pipeline.errors import UserError, shortened
from pipeline.layers.forward import Arithmetic, LayerForward
from pipeline.layers.joined import JoinedFeatures
from pipeline.layers.readout import Readout
from pipeline.layers.shared_state import VALUES
from pipeline.layers.state import State
from pipeline.methods import Activations, BatchPosition, MethodField, ModelInfo, Rule, StepContext
from pipeline.nets import Layer, NetField, Shape
from pipeline.nets.sizes import without_values
from pipeline.registry import STRICT, problems, unknown_names
from pipeline.tensor_file import save_tensors

_AGAIN = "The file was changed: take it from the run folder again, or export the run again."
_FORMAT = 1
_KEY = "localpipe"
_LARGEST_SIDE, _MOST_CLASSES = 1 << 14, 1 << 16
_PARTS = {"net": "layers", "rule": "rules", "readout": "readouts"}
_WEIGHT = re.compile(r"layers?\.(?P<layer>\d+)\.(?P<part>net|rule|readout)\.(?P<rest>.+)")


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a file of weights says about itself.

    Attributes:
        net: the net's settings.
        shape: (channels, height, width) of its images.
        classes: class names in the order of the scores.
        mean, std: of each channel, images scaled to 0 … 1.
        data: name of the data set it learned from.
        method: the learning method's settings.
        readout_norm: whether readouts have a LayerNorm.
        transfer_dtype, precision, threads: the run's, as in ``pipeline.layers.forward.Arithmetic``. The run's own bits
            come again in a process with as many threads (``torch.set_num_threads``).
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    net: NetField
    shape: Shape
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    data: str
    method: MethodField
    readout_norm: bool = True
    transfer_dtype: TransferDtype = "fp32"
    precision: Precision = "fp32"
    threads: int = 1
    format: int = _FORMAT


_CARD = TypeAdapter(Card)


@dataclass(frozen=True, kw_only=True)
class LayerOutputs:
    """One layer on one batch of N images.

    Attributes:
        index: 0-based.
        outputs: the rule's.
        features: pooled features h̄ (N, C), float32.
        readout: scores (N, Z) of the layer's readout; None without one.
        direct: scores (N, Z) by which the layer predicts on its own; None where its method cannot.
        targets: label embeddings (Z, C) as the layer sees them, float32; None for methods without any.
        goodness: of every image with every class's label (N, Z) at this layer; None for methods that show no labels.
    """

    index: int
    layer: Layer
    rule: Rule
    outputs: Activations
    features: Tensor
    readout: Tensor | None
    direct: Tensor | None
    targets: Tensor | None
    goodness: Tensor | None

    @property
    def scores(self) -> Tensor | None:
        """Scores (N, Z) by which the network predicts at this layer: the readout's, without one the layer's own."""
        return self.readout if self.readout is not None else self.direct

    def tokens(self) -> Tensor:
        """Feature vectors h_k (N, T, C) before pooling, float32."""
        return self.layer.tokens(self.outputs["x"]).float()


class Network(nn.Module):
    """A trained network: layers, each with its rule, and with a readout where one was trained on it.

    Attributes:
        classes: class names in the order of the scores.
        shape: (channels, height, width) that ``forward`` takes.
        embeddings: what the layers share, such as label embeddings (Z, C_D); None where they share nothing.
    """

    shift: Tensor
    scale: Tensor
    embeddings: Tensor | None

    def __init__(
        self, card: Card, *, readouts: Collection[int] = (), embeddings: tuple[int, ...] | None = None
    ) -> None:
        """Untrained. ``readouts`` are the layers that have one, ``embeddings`` the shape of what layers share."""
        super().__init__()
        self.classes, self.shape, self.card = card.classes, card.shape, card
        net = card.method.adapt(card.net)
        model_info = ModelInfo(
            num_layers=net.num_layers, num_classes=len(card.classes), mean=tuple(card.mean), std=tuple(card.std)
        )
        built: list[Layer] = [net.build(index, card.shape) for index in range(net.num_layers)]
        self.layers = nn.ModuleList(built)
        rules = [card.method.build(index, layer, model_info) for index, layer in enumerate(built)]
        self.rules = nn.ModuleList(rules)
        joined = [
            JoinedFeatures(card.method, net, card.shape, index, layer, readouts) for index, layer in enumerate(built)
        ]
        self.readouts = nn.ModuleDict(
            {str(index): Readout(joined[index].width, len(card.classes), norm=card.readout_norm) for index in readouts}
        )
        arithmetic = Arithmetic(precision=card.precision, transfer_dtype=card.transfer_dtype, threads=card.threads)
        self._forwards = [
            LayerForward(layer, rule, seen, arithmetic) for layer, rule, seen in zip(built, rules, joined, strict=True)
        ]
        self.register_buffer("embeddings", torch.zeros(embeddings) if embeddings else None)
        shift, scale = shift_and_scale(card.mean, card.std)
        self.register_buffer("shift", shift, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def outputs(self, images: Tensor) -> Iterator[LayerOutputs]:
        """What each layer puts out, first to last. Images as for ``features``."""
        pixels = images.to(torch.float32, copy=True) if images.dtype == torch.uint8 else 255 * images.float()
        x = normalize_(pixels, self.shift, self.scale)
        nobody = torch.zeros(len(x), dtype=torch.int64, device=x.device)  # labels, which a prediction does not know
        context = StepContext(labels=nobody, where=BatchPosition(), shared=self.embeddings)
        activations: Activations = {}
        for index, (layer, rule, forward) in enumerate(zip(self.layers, self.rules, self._forwards, strict=True)):
            assert isinstance(layer, Layer) and isinstance(rule, Rule)
            activations = rule.make_inputs(x, context) if index == 0 else activations
            outputs = forward.outputs(activations, context)
            readout = self.readouts[str(index)] if str(index) in self.readouts else None  # noqa: SIM401 (no `get`)
            targets = rule.targets(layer, context)
            yield LayerOutputs(
                index=index,
                layer=layer,
                rule=rule,
                outputs=outputs.own,
                features=forward.features(outputs),
                readout=readout(forward.readout_input(outputs)) if readout is not None else None,
                direct=rule.scores(layer, outputs.own, context),
                targets=targets.detach().float() if targets is not None else None,
                goodness=rule.goodness(layer, outputs.own),
            )
            activations = forward.to_send(outputs, context, for_readouts=True)

    def features(self, images: Tensor) -> list[Tensor]:
        """Pooled features (N, C) of every layer. Images (N, channels, H, W): uint8, or float scaled to 0 … 1."""
        return [layer.features for layer in self.outputs(images)]

    def forward(self, images: Tensor) -> Tensor:
        """Scores (N, classes) of the last layer: its readout's, or its own; arguments as ``features``.

        Raises:
            UserError: its run has no readouts, or ended before they were trained.
        """
        scores = self.layer_scores(images)[-1]
        if scores is None:
            raise UserError(
                "This network has no readout: its run has none, or ended before one was trained. Use `features`, or "
                "finish the run."
            )
        return scores

    def layer_scores(self, images: Tensor) -> list[Tensor | None]:
        """Scores (N, classes) of every layer: its readout's, or without one its own; None where there are neither."""
        return [layer.scores for layer in self.outputs(images)]

    def direct_scores(self, images: Tensor) -> list[Tensor | None]:
        """Every layer's own scores (N, classes), such as similarities to label embeddings; None where it has none."""
        return [layer.direct for layer in self.outputs(images)]


def card_of(spec: RunSpec) -> Card:
    """The card of a run's network."""
    return Card(
        net=spec.settings.net,
        shape=spec.shape,
        classes=spec.classes,
        mean=spec.augment.mean,
        std=spec.augment.std,
        data=spec.data_name,
        method=spec.settings.method,
        readout_norm=spec.settings.readout.readout_norm,
        transfer_dtype=spec.settings.pipeline.transfer_dtype,
        precision=spec.settings.pipeline.precision,
        threads=spec.settings.pipeline.threads,
    )


def save(file: Path, weights: State, card: Card) -> None:
    """Writes weights and card; the file is there whole or not at all."""
    save_tensors(file, weights, {_KEY: _dump(card)})


def read(file: Path) -> tuple[State, Card]:
    """Weights and card of a file that ``save`` wrote.

    Raises:
        UserError: it is not one, its card describes no network, or its tensors have other sizes than the net's layers.
            Until all of that is known no tensor is read.
    """
    advice = "Give a file written by `launch export`, or a run's model.safetensors."
    if not file.is_file():
        raise UserError(f"{file}: no such file. {advice}")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if _KEY not in metadata:
                raise UserError(f"{file}: holds weights, and no card that says what net they belong to. {advice}")
            card = _read_card(metadata[_KEY], file)
            _check_layers(card, {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}, str(file))  # noqa: SIM118
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: cut short, damaged, or no safetensors file at all ({error}). {advice}") from error
    return weights, card


def _read_card(text: str, file: Path) -> Card:
    """The card of a file. Raises UserError naming each field that does not fit."""
    other = "Use the version that wrote it, or export the run again."
    try:
        values = plain_json.parse(text)
    except ValueError as error:
        raise UserError(f"{file}: its card cannot be read as JSON ({error}). {other}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: its card is a table, not {reprlib.repr(values)}. {other}")
    if values.get("format", _FORMAT) != _FORMAT:
        raise UserError(f"{file}: format {reprlib.repr(values['format'])}, this version reads {_FORMAT}. {other}")
    try:
        return _CARD.validate_python(renamed(values))
    except ValidationError as error:
        if unknown := ", ".join(unknown_names(error)):
            raise UserError(
                f"{file}: its card has fields that this version does not know: {unknown}. {other}"
            ) from error
        raise UserError(f"{file}: in its card, {'; '.join(problems(error))}. {other}") from error


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
    return network_of(weights, card, source=str(file))


def network_of(weights: State, card: Card, *, source: str = "model.safetensors") -> Network:
    """The network of a run's weights, as ``load`` gives it.

    Args:
        source: the file's name, for errors.

    Raises:
        UserError: the card contradicts itself, or the weights are not those of the net that it describes.
    """
    num_layers = _check_layers(card, {name: tuple(value.shape) for name, value in weights.items()}, source)
    shared = weights.get(VALUES)
    if shared is None and card.method.shared_versions(num_layers, 1) is not None:
        raise _misfit(source, card, f"{VALUES} is missing")
    shape: tuple[int, ...] | None = None
    if shared is not None and card.method.label_embeddings() is None:
        shape = tuple(shared.shape)
    elif shared is not None and shared.ndim == 2:
        shape = (len(card.classes), shared.shape[1])
    readouts = set()
    renamed = {"embeddings": shared} if shared is not None else {}
    for name, value in weights.items():
        if name == VALUES:
            continue
        named = _WEIGHT.fullmatch(name)
        if named is None or int(named["layer"]) >= num_layers:
            raise _misfit(source, card, f"{name} belongs to none of its {num_layers} layers")
        if named["part"] == "readout":
            readouts.add(int(named["layer"]))
        renamed[f"{_PARTS[named['part']]}.{named['layer']}.{named['rest']}"] = value
    network = Network(card, readouts=sorted(readouts), embeddings=shape)
    expected = network.state_dict()
    for name in sorted(expected.keys() | renamed.keys()):
        if name not in renamed:
            raise _misfit(source, card, f"{name} is missing")
        if name not in expected:
            raise _misfit(source, card, f"{name} is not part of it")
        if expected[name].shape != renamed[name].shape:
            raise _misfit(
                source, card, f"{name} is {_size(renamed[name].shape)} and should be {_size(expected[name].shape)}"
            )
    network.load_state_dict(renamed)
    return network.eval()


def _check_layers(card: Card, sizes: Mapping[str, tuple[int, ...]], source: str) -> int:
    """Refuses tensors that are not those of the card's net, by their sizes alone. Returns the number of layers.

    Raises:
        UserError: also where the card contradicts itself.
    """
    _check_card(card, source)
    net = card.method.adapt(card.net)
    if net.num_layers > len(sizes):
        raise _misfit(source, card, f"something of its {net.num_layers:,} layers is missing")
    layers = without_values(net, card.shape)
    for index, layer in enumerate(layers):
        for name, value in sorted(layer.state_dict().items()):
            kept = f"layers.{index}.net.{name}"
            if kept not in sizes:
                raise _misfit(source, card, f"{kept} is missing")
            if sizes[kept] != tuple(value.shape):
                raise _misfit(source, card, f"{kept} is {_size(sizes[kept])} and should be {_size(tuple(value.shape))}")
    embeddings = card.method.label_embeddings()
    shared = sizes.get(VALUES)
    if embeddings is not None and shared is not None and len(shared) == 2:
        longest = max(layer.features for layer in layers)
        if shared[1] < longest:
            raise _misfit(
                source, card, f"{VALUES} has embeddings of length {shared[1]}, shorter than features ({longest})"
            )
    return net.num_layers


def _check_card(card: Card, source: str) -> None:
    """Refuses a card of which no network can be built. Raises UserError."""
    channels = card.shape[0]
    for name, value, low, most in (
        *(("shape", side, 1, _LARGEST_SIDE) for side in card.shape),
        ("classes", len(card.classes), 1, _MOST_CLASSES),
        ("threads", card.threads, 1, checks.MOST_AT_ONCE),
    ):
        if not low <= value <= most:
            what = "of them" if name == "classes" else "in it"
            raise UserError(
                f"{source}: its card says {shortened(value)} {what} for {name}: {low} to {most:,}. {_AGAIN}"
            )
    if len(card.mean) != channels or len(card.std) != channels:
        raise UserError(
            f"{source}: its card has {len(card.mean)} numbers for mean, {len(card.std)} for std and images "
            f"of {channels} channels. {_AGAIN}"
        )
    try:
        checks.check_integers(card.net)
        checks.check_integers(card.method)
        checks.check_layers(card.net)
        resolved = card.net.resolve(card.shape)
        card.method.check()
    except UserError as error:
        raise UserError(f"{source}: its card does not describe a network. {error} {_AGAIN}") from error
    if not all(map(math.isfinite, card.mean)) or not all(0 < value < math.inf for value in card.std):
        raise UserError(
            f"{source}: its card has {card.mean} for mean and {card.std} for std: numbers, std above 0. {_AGAIN}"
        )
    if resolved != card.net:
        raise UserError(f"{source}: its card leaves settings of the net open ('auto'). {_AGAIN}")


def _misfit(source: str, card: Card, problem: str) -> UserError:
    _, height, width = card.shape
    return UserError(
        f"{source}: its weights are not those of the {card.net.describe()} for {len(card.classes)} classes of images "
        f"of {height}×{width} that its card describes: {problem}. {_AGAIN}"
    )


def _size(shape: Iterable[int]) -> str:
    return "×".join(str(length) for length in shape) or "one number"


def _dump(card: Card) -> str:
    return _CARD.dump_json(card).decode()
