"""Super-classes: the three ways by hand, the ones known by name, and files that are refused with a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from launch.analyse.superclasses import read_superclasses
from launch.cli import main
from pipeline import load
from pipeline.analysis.superclasses import SuperClasses, evaluate, guess, partition
from pipeline.data.class_groups import SUPERCLASSES
from pipeline.data.registry import DATASETS
from pipeline.errors import UserError
from pipeline.export import LayerOutputs
from pipeline.methods import CflSettings, ModelInfo
from pipeline.methods.embeddings import EmbeddingSettings
from pipeline.nets import MlpSettings
from tests.support_analysis import digits, digits_run

ANIMALS = ("cat", "dog", "car", "bus")
GROUPS = SuperClasses(("animals", "vehicles"), ((0, 1), (2, 3)))


def view(features: Tensor, targets: Tensor, readout: Tensor | None, *, cosine: bool = False) -> LayerOutputs:
    """A layer that has just these features and embeddings; its readout has these scores."""
    layer = MlpSettings(width=features.shape[1], depth=1).build(0, (1, 1, 1))
    settings = CflSettings(
        similarity="cosine" if cosine else "dot", embedding=EmbeddingSettings(embedding_mode="per-layer")
    )
    rule = settings.build(0, layer, ModelInfo(num_layers=1, num_classes=len(targets)))
    return LayerOutputs(
        index=0,
        layer=layer,
        rule=rule,
        outputs={"x": features},
        features=features,
        readout=readout,
        direct=rule.compare(features, targets),
        targets=targets,
        goodness=None,
    )


def test_the_three_ways_by_hand() -> None:
    """cat (4, 0), dog (−2, 0), car (1, 1), bus (1, 3): means (1, 0) and (1, 2)."""
    targets = torch.tensor([[4.0, 0.0], [-2.0, 0.0], [1.0, 1.0], [1.0, 3.0]])
    features = torch.tensor([[1.0, 0.1], [-1.0, -1.0], [0.5, 1.0]])
    # ⟨h, t⟩: (4, −2, 1.1, 1.3), (−4, 2, −2, −4), (2, −1, 1.5, 3.5); with the means (1, 1.2), (−1, −3), (0.5, 2.5)
    readout = torch.tensor([[0.0, 0.0, 9.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    found = guess(view(features, targets, readout), GROUPS)
    assert found.naive.tolist() == [1, 0, 0]  # car, cat, dog
    assert found.super.tolist() == [0, 0, 1]  # cat, dog, bus
    assert found.mean.tolist() == [1, 0, 1]


def test_without_a_readout_naive_is_super() -> None:
    targets, features = torch.randn(4, 5), torch.randn(30, 5)
    found = guess(view(features, targets, None), GROUPS)
    assert torch.equal(found.naive, found.super)


def test_cosine_similarity_is_the_method_s() -> None:
    """A long embedding wins by dot product, a near one by cosine."""
    targets = torch.tensor([[10.0, 10.0], [0.0, 0.1], [1.0, 0.0], [1.0, 0.0]])
    features = torch.tensor([[1.0, 0.1]])
    assert guess(view(features, targets, None), GROUPS).super.tolist() == [0]
    directions = F.normalize(targets, dim=1)  # as a rule gives them
    assert guess(view(features, directions, None, cosine=True), GROUPS).super.tolist() == [1]


def test_the_mean_of_pooled_embeddings_is_the_pooled_mean() -> None:
    dictionary, pool = torch.randn(4, 12, dtype=torch.float64), nn.AdaptiveAvgPool1d(5)
    torch.testing.assert_close(GROUPS.means(pool(dictionary)), pool(GROUPS.means(dictionary)))


def test_groups_of_any_size() -> None:
    groups = partition({"a": ["x"], "b": ["z", "y", "w"]}, ["w", "x", "y", "z"], source="here")
    assert groups.groups == ((1,), (3, 2, 0))
    assert groups.of_class.tolist() == [1, 0, 1, 1]
    assert groups.order == [1, 3, 2, 0]
    assert torch.equal(
        groups.means(torch.eye(4)), torch.tensor([[0, 1, 0, 0], [1, 0, 1, 1.0]]) / torch.tensor([[1], [3]])
    )


# Of the labels in the official archive: the super-class of each class in alphabetical order.
_FINE_TO_COARSE = """4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 14 16 9 11 5
5 19 8 8 15 13 14 17 18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19 2 10 0 1 16 12 9 13 15 13
16 19 2 4 6 19 5 5 8 19 18 1 2 15 6 0 17 8 14 13"""


def test_cifar100_is_grouped_as_its_coarse_labels() -> None:
    facts = DATASETS["cifar100"]
    groups = partition(SUPERCLASSES["cifar100"], facts.classes, source="cifar100")
    assert groups.names == facts.coarse_classes
    assert groups.of_class.tolist() == [int(number) for number in _FINE_TO_COARSE.split()]


@pytest.mark.parametrize("name", SUPERCLASSES)
def test_every_known_name_fits_its_data_set(name: str) -> None:
    data = name if name in DATASETS else name.split("-", maxsplit=1)[0]
    assert len(read_superclasses(name, DATASETS[data].classes).names) >= 2


@pytest.mark.parametrize(
    "text",
    [
        '{"animals": ["cat", "dog"], "vehicles": ["car", "bus"]}',
        "animals: cat, dog\n\n# machines\nvehicles: car, bus  # both\n",
        "\ufeffanimals:cat,dog,\nvehicles :bus, car",
    ],
)
def test_a_file_of_json_or_of_lines(text: str, tmp_path: Path) -> None:
    (tmp_path / "groups").write_text(text)
    groups = read_superclasses(str(tmp_path / "groups"), ANIMALS)
    assert groups.names == ("animals", "vehicles")
    assert groups.of_class.tolist() == [0, 0, 1, 1]


MISTAKES = {
    "unknown class": ("animals: cat, dogg\nvehicles: car, bus", ["'dogg'", "did you mean 'dog'", "'cat'"]),
    "several unknown": ("animals: cat, dog, elk, ape\nvehicles: car, bus", ["'elk'", "'ape'", "are no classes"]),
    "upper case": ("animals: Cat, dog\nvehicles: car, bus", ["'Cat'", "did you mean 'cat'"]),
    "in two groups": ("animals: cat, dog, car\nvehicles: car, bus", ["'car'", "'animals'", "'vehicles'"]),
    "twice in one": ("animals: cat, dog, dog\nvehicles: car, bus", ["'dog'", "twice in 'animals'"]),
    "left out": ("animals: cat, dog\nvehicles: car", ["'bus'", "Every class"]),
    "one group": ("all: cat, dog, car, bus", ["at least two"]),
    "empty group": ("animals: cat, dog\nplants:\nvehicles: car, bus", ["'plants'", "no classes"]),
    "group named twice": ("animals: cat\nanimals: dog\nvehicles: car, bus", ["'animals'", "twice"]),
    "group twice in JSON": ('{"a": ["cat"], "a": ["dog"]}', ["'a'", "twice"]),
    "no colon": ("cat, dog\nvehicles: car, bus", ["line 1", "'cat, dog'", "super-class: class"]),
    "broken JSON": ('{"animals": ["cat"', ["not JSON"]),
    "another shape": ('{"animals": "cat", "vehicles": "car"}', ["list of class names"]),
    "a JSON list": ('[["cat", "dog"], ["car", "bus"]]', ["list of class names"]),
    "nothing": ("", ["'cat'", "Every class"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_bad_file_is_refused_with_a_sentence(mistake: str, tmp_path: Path) -> None:
    text, said = MISTAKES[mistake]
    file = tmp_path / "groups.txt"
    file.write_text(text)
    with pytest.raises(UserError) as refused:
        read_superclasses(str(file), ANIMALS)
    assert str(file) in str(refused.value)
    assert all(part in str(refused.value) for part in said), refused.value
    assert "\n" not in str(refused.value)


def test_many_unknown_classes_are_not_all_listed() -> None:
    with pytest.raises(UserError, match="and 94 more are no classes"):
        read_superclasses("cifar100", ANIMALS)


def test_bytes_are_no_groups(tmp_path: Path) -> None:
    (tmp_path / "groups").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="cannot be read as text"):
        read_superclasses(str(tmp_path / "groups"), ANIMALS)


# ---------------------------------------------------------------------------------------------------------------------
# A run

_ROUND = "round: 0, 3, 6, 8, 9\nstraight: 1, 4, 7\nboth: 2, 5"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_run(tmp_path_factory.mktemp("run") / "cfl", "cfl")


def test_accuracies_are_those_of_a_loop_over_images(run: Path, tmp_path: Path) -> None:
    (tmp_path / "groups").write_text(_ROUND)
    network = load(run / "model.safetensors")
    groups = read_superclasses(str(tmp_path / "groups"), network.classes)
    images, labels = digits("test")
    found = evaluate(network, [(images[:100], labels[:100]), (images[100:], labels[100:])], groups)

    home = {"0": 0, "3": 0, "6": 0, "8": 0, "9": 0, "1": 1, "4": 1, "7": 1, "2": 2, "5": 2}
    members = [[0, 3, 6, 8, 9], [1, 4, 7], [2, 5]]
    assert network.embeddings is not None
    with torch.no_grad():
        features, scores = network.features(images), network.layer_scores(images)
        for layer, accuracy in enumerate(found):
            pooled = nn.AdaptiveAvgPool1d(features[layer].shape[1])(network.embeddings)
            hits = {"naive": 0, "mean": 0, "super": 0, "classes": 0}
            judged = scores[layer]
            assert judged is not None
            for h, guessed, label in zip(features[layer], judged.argmax(dim=1).tolist(), labels.tolist(), strict=True):
                truth = home[str(label)]
                nearest = max(range(10), key=lambda z: float(h @ pooled[z]))
                averaged = max(range(3), key=lambda s: float(h @ pooled[members[s]].mean(dim=0)))
                hits["naive"] += home[str(guessed)] == truth
                hits["super"] += home[str(nearest)] == truth
                hits["mean"] += averaged == truth
                hits["classes"] += guessed == label
            for way, count in hits.items():
                assert getattr(accuracy, way) == pytest.approx(count / len(labels)), (layer, way)


def test_eval_prints_a_row_per_layer(run: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "groups.json").write_text(json.dumps({"low": list("01234"), "high": list("56789")}))
    assert main(["eval", str(run), "--superclasses", str(tmp_path / "groups.json")]) == 0
    printed = capsys.readouterr().out
    network = load(run / "model.safetensors")
    groups = read_superclasses(str(tmp_path / "groups.json"), network.classes)
    for row in evaluate(network, [digits("test")], groups):
        assert f"{row.naive:.2%} │ {row.mean:.2%} │ {row.super:.2%}" in printed


def test_a_name_that_is_neither_known_nor_a_file(run: Path, capsys: Any) -> None:
    assert main(["eval", str(run), "--superclasses", "cifar-100"]) == 2
    said = capsys.readouterr().err
    assert "Did you mean 'cifar100'" in said
    assert len(said.strip().splitlines()) == 1


def test_a_run_without_embeddings_has_no_superclasses(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "groups").write_text(_ROUND)
    run = digits_run(tmp_path / "cff", "cff")
    capsys.readouterr()
    assert main(["eval", str(run), "--superclasses", str(tmp_path / "groups")]) == 2
    captured = capsys.readouterr()
    assert "no label embeddings" in captured.err
    assert not captured.out, "refused before anything is computed"


def test_layers_with_embeddings_of_their_own(tmp_path: Path) -> None:
    run = digits_run(tmp_path / "own", "dcl-per-layer")
    network = load(run / "model.safetensors")
    assert network.embeddings is None
    (tmp_path / "groups").write_text(_ROUND)
    found = evaluate(network, [digits("test")], read_superclasses(str(tmp_path / "groups"), network.classes))
    assert len(found) == 2
    assert all(row.naive == row.super for row in found), "without readouts"
