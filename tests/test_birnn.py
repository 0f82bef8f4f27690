"""The recurrent net under SCFF: loss and update against loops in plain Python, no gradient in time, sequences' ends."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.methods import BatchPosition, ModelInfo, ScffSettings, StepContext
from pipeline.methods.scff import ScffRule, goodness
from pipeline.nets.birnn import BirnnLayer, BirnnSettings

WIDTH, INPUTS, STEPS = 3, 4, 6
SHAPE = (1, STEPS, INPUTS)
LENGTHS = (6, 3, 4, 1)
NET = BirnnSettings(width=WIDTH, depth=1, activation=("relu",))
METHOD = ScffSettings(positive_threshold=(0.4,), negative_threshold=(0.2,), goodness_penalty=(0.3,))
SHIFT = 1 + 7 % (len(LENGTHS) - 1)
"""Of a generator seeded with 7."""


def sequences(lengths: tuple[int, ...] = LENGTHS, steps: int = STEPS) -> Tensor:
    """Images (N, 1, steps, INPUTS) whose rows are all the same behind their lengths; the first rows are always the
    same."""
    images = torch.full((len(lengths), 1, steps, INPUTS), -1.7, dtype=torch.float64)
    for number, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(number)
        images[number, 0, :length] = torch.randn(length, INPUTS, generator=generator, dtype=torch.float64)
    return images


def layer_of(net: BirnnSettings = NET, index: int = 0) -> tuple[BirnnLayer, ScffRule]:
    """In float64."""
    torch.manual_seed(index)
    layer = net.build(index, SHAPE)
    return layer.double(), METHOD.build(index, layer, ModelInfo(num_layers=net.depth, num_classes=2))


def steps_of(layer: BirnnLayer, pairs: Tensor) -> list[int]:
    """Time steps that each pair has."""
    there = layer.places(pairs)
    assert there is not None
    return [int(number) for number in there.sum(dim=1)]


def context() -> StepContext:
    labels = torch.zeros(len(LENGTHS), dtype=torch.int64)
    return StepContext(labels=labels, where=BatchPosition(training=True), generator=torch.Generator().manual_seed(7))


# ---------------------------------------------------------------------------------------------------------------------
# The paper's algorithm, read aloud in Python floats

Vector = list[float]


def standardised(values: Vector) -> Vector:
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) + 1e-8)
    return [(value - mean) / deviation for value in values]


class Reference:
    """One layer's loss and its gradient, sample by sample, direction by direction, step by step, unit by unit."""

    def __init__(self, layer: BirnnLayer) -> None:
        self.u, self.b, self.r = (p.tolist() for p in (layer.input.weight, layer.input.bias, layer.recurrent))
        self.du = [[0.0] * INPUTS for _ in self.u]
        self.db = [0.0] * len(self.b)
        self.dr = [[[0.0] * WIDTH for _ in range(WIDTH)] for _ in range(2)]

    def pair(self, first: list[Vector], second: list[Vector]) -> list[list[tuple[int, float, Vector, Vector, int]]]:
        """For each step both directions' units: (unit, p, what came in, the state before, samples that go on)."""
        length = max(len(first), len(second))
        units: list[list[tuple[int, float, Vector, Vector, int]]] = [[] for _ in range(length)]
        for direction in range(2):
            state = [0.0] * WIDTH
            for step in range(length) if direction == 0 else reversed(range(length)):
                here = [standardised(one[step]) for one in (first, second) if step < len(one)]
                came = [sum(values) for values in zip(*here, strict=True)]
                weighed = []
                for unit in range(WIDTH):
                    row = direction * WIDTH + unit
                    p = len(here) * self.b[row] + sum(w * x for w, x in zip(self.u[row], came, strict=True))
                    p += sum(w * s for w, s in zip(self.r[direction][unit], state, strict=True))
                    weighed.append(p)
                    units[step].append((row, p, came, state, len(here)))
                state = standardised([max(p, 0.0) for p in weighed])
        return units

    def learn(self, samples: list[list[Vector]], shift: int) -> float:
        """The loss; its gradient is in du, db and dr. No state passes any of it back."""
        count = len(samples)
        positive = [self.pair(one, one) for one in samples]
        negative = [self.pair(one, samples[(n + shift) % count]) for n, one in enumerate(samples)]
        loss = 0.0
        for pairs, threshold, sign in ((positive, 0.4, -1.0), (negative, 0.2, 1.0)):
            steps = sum(len(pair) for pair in pairs)
            for pair in pairs:
                good = [sum(max(p, 0.0) ** 2 for _, p, _, _, _ in units) / len(units) for units in pair]
                norm = math.sqrt(sum(g**2 for g in good))
                if pairs is positive:
                    loss += 0.3 * norm / count
                for g, units in zip(good, pair, strict=True):
                    loss += math.log1p(math.exp(sign * (g - threshold))) / steps
                    slope = sign / (1 + math.exp(-sign * (g - threshold))) / steps
                    if pairs is positive:
                        slope += 0.3 * g / norm / count
                    self._back(units, slope)
        return loss

    def _back(self, units: list[tuple[int, float, Vector, Vector, int]], slope: float) -> None:
        for row, p, came, state, going_on in units:
            direction, unit = divmod(row, WIDTH)
            error = slope * 2 * max(p, 0.0) / len(units)
            self.db[row] += error * going_on
            for column, value in enumerate(came):
                self.du[row][column] += error * value
            for column, value in enumerate(state):
                self.dr[direction][unit][column] += error * value


def test_loss_and_update_are_those_of_the_papers_algorithm_in_plain_python() -> None:
    layer, rule = layer_of()
    images = sequences()
    reference = Reference(layer)
    samples = [images[n, 0, :length].tolist() for n, length in enumerate(LENGTHS)]
    expected = reference.learn(samples, SHIFT)

    before = [parameter.detach().clone() for parameter in layer.parameters()]
    optimizer = METHOD.optimizer(0, list(layer.parameters()), lr=0.01, weight_decay=0.0)
    loss = rule.loss(layer, rule(layer, {"x": images}, context()), context())
    loss.backward()
    optimizer.step()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    gradients = {"input.weight": reference.du, "input.bias": reference.db, "recurrent": reference.dr}
    for (name, parameter), old in zip(layer.named_parameters(), before, strict=True):
        gradient = torch.tensor(gradients[name], dtype=torch.float64)
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-9)
        # The first step of Adam: the gradient by its own size.
        torch.testing.assert_close(parameter.detach(), old - 0.01 * gradient / (gradient.abs() + 1e-8))


def test_the_losss_gradient_is_that_of_finite_differences_where_sequences_end() -> None:
    rule = layer_of()[1]
    there = [torch.arange(STEPS) < torch.tensor(LENGTHS)[:, None] for _ in range(2)]
    inputs = [(1 + torch.randn(4, STEPS, dtype=torch.float64).square()).requires_grad_() for _ in range(2)]
    assert torch.autograd.gradcheck(lambda positive, negative: rule.contrast(positive, negative, *there), inputs)


def test_no_gradient_goes_from_a_time_step_to_another() -> None:
    layer, _ = layer_of()
    weighed = layer.weigh(sequences()).detach().requires_grad_()
    pairs = layer.with_itself(weighed)
    for step in range(STEPS):
        (gradient,) = torch.autograd.grad(goodness(pairs)[:, step].sum(), weighed, retain_graph=True)
        assert gradient[:, step].any()
        assert not gradient.index_fill(1, torch.tensor(step), 0.0).any()


def test_rows_behind_a_sequences_end_change_nothing() -> None:
    short, long = sequences(), sequences(steps=STEPS + 4)
    layer, rule = layer_of()
    torch.testing.assert_close(layer.readout_input(layer(long)), layer.readout_input(layer(short)))
    torch.testing.assert_close(layer.pool(layer(long)), layer.pool(layer(short)))
    assert steps_of(layer, layer.with_itself(layer.weigh(short))) == list(LENGTHS)
    losses = [rule.loss(layer, rule(layer, {"x": one}, context()), context()) for one in (short, long)]
    torch.testing.assert_close(*losses)


def test_a_readout_sees_where_each_direction_ends() -> None:
    """The backward half is the forward half of the reversed sequence, under the same weights."""
    layer, _ = layer_of()
    with torch.no_grad():
        layer.recurrent[1] = layer.recurrent[0]
        layer.input.weight[WIDTH:] = layer.input.weight[:WIDTH]
        layer.input.bias[WIDTH:] = layer.input.bias[:WIDTH]
    images = sequences((STEPS, STEPS))
    seen, reversed_seen = layer.readout_input(layer(images)), layer.readout_input(layer(images.flip(2)))
    torch.testing.assert_close(seen[:, :WIDTH], reversed_seen[:, WIDTH:])
    torch.testing.assert_close(seen[:, WIDTH:], reversed_seen[:, :WIDTH])
    torch.testing.assert_close(seen[:, :WIDTH].mean(dim=1), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("pairing", ["anew", "passed"])
def test_a_layer_behind_another_knows_where_sequences_end(pairing: Any) -> None:
    net = replace(NET, depth=2, pairing=("anew", pairing))
    (first, _), (second, _) = layer_of(net, 0), layer_of(net, 1)
    pairs = second.with_itself(second.weigh(first(sequences())))
    assert pairs.shape == (len(LENGTHS), 2 * WIDTH, STEPS)
    assert steps_of(second, pairs) == list(LENGTHS)


def test_rows_of_one_value_are_refused() -> None:
    with pytest.raises(UserError, match=r"Images of 8×1 pixels have one value a row"):
        NET.resolve((1, 8, 1))
