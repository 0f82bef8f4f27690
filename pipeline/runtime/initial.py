"""A run that begins with the weights of another run's net, in place of random ones."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Self

from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import Settings
from pipeline.errors import UserError
from pipeline.export import Card, read
from pipeline.layers.state import State, below
from pipeline.methods import BaselineSettings
from pipeline.nets import NetConfig
from pipeline.nets.sizes import without_values
from pipeline.nets.whole import WholeNet


@dataclass(frozen=True)
class InitialWeights:
    """A trained run's weights, from which another run is to begin.

    Attributes:
        source: the file that they are from.
        layers: what each layer of the net has learned, the first one first, whether they learned one by one or the net
            as one piece. What rules and other readouts have learned is not among it.
        classifier: the last readout, or the classifier of a net that learned as one piece, by the names that
            ``EndToEndRule`` has for it; empty where there is none.
    """

    source: Path
    card: Card
    layers: tuple[State, ...]
    classifier: State

    @classmethod
    def asked_for(cls, settings: Settings) -> Self | None:
        """Those that settings name (`init_from`); None where they name none.

        Raises:
            UserError: there is no such run, or no weights of ours in it.
        """
        if settings.train.init_from is None:
            return None
        given = Path(settings.train.init_from)
        source = given / "model.safetensors" if given.is_dir() else given
        if not source.is_file():
            raise UserError(
                f"`init_from` {given}: {'the run has no weights yet' if given.is_dir() else 'no such run'}. Give the "
                "folder of a run that is over, or a file that `launch export` wrote."
            )
        weights, card = read(source)
        net = card.method.adapt(card.net)
        if isinstance(net, WholeNet):
            parts = [f"layers.0.net.layers.{index}." for index in range(net.net.num_layers)]
            classifier = below(weights, "layers.0.rule.") if isinstance(card.method, BaselineSettings) else {}
        else:
            parts = [f"layers.{index}.net." for index in range(net.num_layers)]
            readout = below(weights, f"layers.{net.num_layers - 1}.readout.")
            classifier = {name.replace("linear.", "classifier."): value for name, value in readout.items()}
        return cls(source, card, tuple(below(weights, part) for part in parts), classifier)

    def given_to(self, spec: RunSpec) -> RunSpec:
        """The run that begins with these weights.

        Raises:
            UserError: they are those of another net, or of images of another size.
        """
        net, card = spec.settings.net, self.card
        if (card.net, card.shape) != (net, spec.shape):
            raise UserError(
                f"`init_from` {self.source}: its weights are those of {card.net.describe()} on images of "
                f"{_size(card.shape)}, and this run trains {net.describe()} on images of {_size(spec.shape)}"
                f"{_other_settings(card.net, net)}. Give the same settings of the net as that run has, and images of "
                "its size."
            )
        whole = isinstance(spec.net, WholeNet)
        state = {f"{index}.{name}": value for index, layer in enumerate(self.layers) for name, value in layer.items()}
        found: list[State] = []
        for index, layer in enumerate(without_values(spec.net, spec.shape)):
            known = {f"layers.{name}": value for name, value in state.items()} if whole else below(state, f"{index}.")
            expected = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
            taken = {name: known[name] for name in expected if name in known}
            for name, parameter in layer.named_parameters():
                if name not in taken or taken[name].shape != parameter.shape:
                    raise UserError(
                        f"`init_from` {self.source}: layers trained by {card.method.kind} have no weights {name} such "
                        f"as {spec.settings.method.kind} needs in layer {index + 1}. Give a run whose method trains "
                        "the net as it is."
                    )
            found.append({f"net.{name}": value for name, value in taken.items()})
        found[0] |= {f"rule.{name}": value for name, value in self._classifier_for(spec).items()}
        train = replace(spec.settings.train, init_from=str(self.source.resolve()))
        return replace(spec, settings=replace(spec.settings, train=train), initial=tuple(found))

    def _classifier_for(self, spec: RunSpec) -> State:
        """What the run's classifier begins with: where it is trained by backpropagation, sees what that one saw, and
        tells the same classes apart. Else nothing."""
        method, card = spec.settings.method, self.card
        if not isinstance(method, BaselineSettings) or method.feedback != "bp" or card.classes != spec.classes:
            return {}
        theirs = card.method
        if not isinstance(theirs, BaselineSettings):
            theirs = BaselineSettings.like_readout(theirs, card.net, norm=card.readout_norm)
        same = (theirs.joined, theirs.classifier_norm) == (method.joined, method.classifier_norm)
        return self.classifier if same else {}


def _other_settings(theirs: NetConfig, ours: NetConfig) -> str:
    """In which settings two nets of a kind differ, in brackets."""
    if type(theirs) is not type(ours):
        return ""
    pairs = {field.name: (getattr(theirs, field.name), getattr(ours, field.name)) for field in fields(ours)}
    differ = [f"`{name}` {reprlib.repr(a)} there, {reprlib.repr(b)} here" for name, (a, b) in pairs.items() if a != b]
    return f" ({'; '.join(differ)})" if differ else ""


def _size(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{height}×{width} pixels in {channels} channel{'s' if channels > 1 else ''}"


def begun(spec: RunSpec, initial: InitialWeights | None) -> RunSpec:
    """The run as it begins: with these weights, or with random ones. Errors as of ``InitialWeights.given_to``."""
    return spec if initial is None else initial.given_to(spec)
