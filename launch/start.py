"""The weights that a run begins with where it goes on from another one by backpropagation (`--start-from`)."""

from __future__ import annotations

import re
import reprlib
from dataclasses import fields
from pathlib import Path

from pipeline.config.run_spec import RunSpec
from pipeline.errors import UserError
from pipeline.export import network_of, read
from pipeline.layers.layer import State
from pipeline.methods import BaselineSettings
from pipeline.nets import NetConfig

_NET = re.compile(r"layers\.(?P<layer>\d+)\.net\.(?P<rest>.+)")


def start_of(spec: RunSpec) -> State:
    """The weights of the run that ``start_from`` names, as those of this run's one layer; none where it names none.

    The classifier is that run's last readout.

    Raises:
        UserError: no trained run, or one of another net, of other images or classes, or with another readout.
    """
    if spec.settings.start_from is None:
        return {}
    method, named = spec.settings.method, f"`start_from` {spec.settings.start_from}"
    assert isinstance(method, BaselineSettings), "checks refuse it of any other"
    file = Path(spec.settings.start_from) / "model.safetensors"
    weights, card = read(file)
    network_of(weights, card, source=str(file))  # says what is wrong with it
    for theirs, ours in (
        (_settings(card.net), _settings(spec.settings.net)),
        ({"channels, height and width": card.shape}, {"channels, height and width": spec.shape}),
        ({"classes": card.classes}, {"classes": spec.classes}),
    ):
        for name in {**theirs, **ours}:
            if theirs.get(name) != ours.get(name):
                other, own = (reprlib.repr(each.get(name)) for each in (theirs, ours))
                raise UserError(
                    f"{named}: that run has {name} {other}, this one {own}. Give a run of the same preset, on the same "
                    "data."
                )
    if not card.method.leaves_plain(card.net):
        raise UserError(
            f"{named}: between layers trained by {card.method.kind} there is more than the net, so backpropagation "
            "cannot go on with them. Give a run of another method."
        )
    count = card.net.num_layers
    readout = f"layers.{count - 1}.readout."
    seen = card.method.readout_inputs(count - 1, count)
    if not any(name.startswith(readout) for name in weights):
        raise UserError(f"{named}: that run has no readout of its last layer to begin with. Finish it first.")
    if (seen, card.readout_norm) != (method.joined, method.classifier_norm):
        raise UserError(
            f"{named}: that run's readout sees the layers {_listed(seen)} {_norm(card.readout_norm)}, this run's "
            f"classifier {_listed(method.joined)} {_norm(method.classifier_norm)}. Give it the settings of that run."
        )
    start = {}
    for name, value in weights.items():
        if named_weight := _NET.fullmatch(name):
            start[f"layers.0.net.layers.{named_weight['layer']}.{named_weight['rest']}"] = value
        elif name.startswith(readout):
            start[f"layers.0.rule.{name.removeprefix(readout).replace('linear.', 'classifier.')}"] = value
    return start


def _settings(net: NetConfig) -> dict[str, object]:
    """A net's settings, by their names in backquotes."""
    return {"net": net.kind, **{f"`{field.name}`": getattr(net, field.name) for field in fields(net)}}


def _listed(layers: tuple[int, ...]) -> str:
    return " ".join(str(layer + 1) for layer in layers)


def _norm(norm: bool) -> str:
    return "behind a LayerNorm" if norm else "without a LayerNorm"
