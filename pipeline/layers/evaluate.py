"""Evaluates trained layers on a split, batch by batch, without a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from pipeline.config.run_spec import RunSpec
from pipeline.data.augment import Augment
from pipeline.data.loader import Batch
from pipeline.kind import Kind
from pipeline.layers.layer import LocalLayer
from pipeline.layers.tallies import EvaluationTally
from pipeline.telemetry.reports import PassReport


def evaluate(
    spec: RunSpec, layers: Sequence[LocalLayer], augment: Augment, batches: Iterable[Batch], *, kind: Kind, epoch: int
) -> PassReport:
    """Loss, accuracy and Fisher criterion of every layer; with kind TEST also every prediction."""
    device, rule = layers[0].device, layers[0].rule
    tallies = [EvaluationTally.of(spec, layer.index, layer.net.features, device) for layer in layers]
    ids, true = [], []
    for batch in batches:
        where, labels = spec.batch_position(kind, epoch, batch.step, batch.position), batch.labels.to(device)
        images = augment.evaluation(
            batch.images, epoch=epoch, position=batch.position, num_views=spec.evaluation_views(kind, rule.num_views)
        )
        activations = layers[0].make_inputs(images, labels, where)
        for layer, tally in zip(layers, tallies, strict=True):
            activations = layer.evaluate(activations, labels, where, tally)
        ids.append(batch.ids)
        true.append(batch.labels)
    test = kind is Kind.TEST
    return PassReport(
        stage=0,
        kind=kind,
        epoch=epoch,
        layers=[tally.report(with_predictions=test) for tally in tallies],
        ids=torch.cat(ids).numpy() if test else None,
        labels=torch.cat(true).numpy() if test else None,
    )
