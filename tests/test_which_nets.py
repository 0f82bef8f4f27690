"""Which method trains which net on which data: the table in docs/methods.md, cell by cell."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from pipeline.data.registry import DATASETS
from pipeline.errors import UserError
from pipeline.methods import METHODS, MethodConfig
from pipeline.nets import NETS, NetConfig, Shape
from pipeline.nets.sizes import layer_features
from pipeline.runtime.edges import edge_bytes
from tests.support import tiny_spec
from tests.support_documents import ROOT


def table() -> dict[tuple[str, str], str]:
    """Cells by the method's and the net's kind: "all", or the data sets that it is not for."""
    section = (ROOT / "docs" / "methods.md").read_text("utf-8").split("\n## Which method trains which net\n")[1]
    lines = [line for line in section.split("\n## ")[0].splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    return {(row[0], net): cell for row in rows for net, cell in zip(head[1:], row[1:], strict=True)}


TABLE = table()
OURS = [method for method in METHODS if method.__module__.startswith("pipeline.")]


@cache
def features(net: NetConfig, shape: Shape) -> list[int]:
    return layer_features(net, shape)


def is_refused(method: MethodConfig, net: NetConfig, data: str) -> bool:
    """Whether a run on a data set is refused before anything starts, by the checks that a run makes."""
    facts = DATASETS[data]
    try:
        resolved = net.resolve(facts.shape)
        method.check_data(resolved, facts.shape, facts.num_classes)
        method.resolve(features(method.adapt(resolved), facts.shape))
    except UserError:
        return True
    return False


def test_every_method_and_net_is_in_the_table() -> None:
    assert {method for method, _ in TABLE} == {method.kind for method in OURS}
    assert {net for _, net in TABLE} == {net.kind for net in NETS}


@pytest.mark.parametrize("method", OURS, ids=[method.kind for method in OURS])
def test_the_table_says_what_is_refused(method: type[MethodConfig]) -> None:
    for net in NETS:
        refused = [data for data in DATASETS if is_refused(method(), net(), data)]
        said = "all" if not refused else "no" if len(refused) == len(DATASETS) else f"not {', '.join(refused)}"
        assert TABLE[method.kind, net.kind] == said, net.kind


_EVERY_DAY = ("cafo", "iffcl")  # of a net of its own kind, and of twins


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, id=method.kind, marks=() if method.kind in _EVERY_DAY else pytest.mark.exhaustive)
        for method in OURS
    ],
)
def test_what_is_not_refused_goes_through_every_layer(method: type[MethodConfig]) -> None:
    """A batch of MNIST in shapes alone, in training and in evaluation, through layers and rules to what is sent."""
    for net in NETS:
        if is_refused(method(), net(), "mnist"):
            continue
        shape = DATASETS["mnist"].shape
        resolved = net().resolve(shape)
        learns = method().resolve(features(method().adapt(resolved), shape))
        spec = replace(tiny_spec(net=resolved, method=learns, num_classes=10), shape=shape)
        spec = spec.in_stages(min(2, spec.num_layers))
        sizes = edge_bytes(spec)
        assert len(sizes) == spec.num_stages and min(sizes) > 0
