"""`launch analyse`: each figure against a computation of its own, the command end to end, the pictures it leaves."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from launch.cli import main
from launch.output import pictures as draw
from launch.output.pictures import AnchorRow, Classes, Example
from pipeline import load
from pipeline.analysis import figures
from pipeline.analysis.layers import attention, fisher, record
from tests.support_analysis import digits, digits_run
from tests.support_pictures import write_blank
from tests.test_analysis import explicit_fisher

pytestmark = pytest.mark.pictures


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_labels(count: int, num_classes: int, seed: int = 0) -> Tensor:
    return torch.randint(num_classes, (count,), generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def test_confusion_is_scikit_learn_s() -> None:
    labels, guesses = some_labels(500, 7), some_labels(500, 7, seed=1)
    ours = figures.confusion(labels, guesses, 7)
    assert (ours.numpy() == confusion_matrix(labels.numpy(), guesses.numpy(), labels=range(7))).all()


def test_confusion_has_rows_for_absent_classes() -> None:
    table = figures.confusion(torch.tensor([0, 0, 2]), torch.tensor([0, 2, 2]), 4)
    assert table.tolist() == [[1, 0, 1, 0], [0] * 4, [0, 0, 1, 0], [0] * 4]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_accuracy_is_scikit_learn_s(k: int) -> None:
    labels, scores = some_labels(300, 9), seeded(300, 9)
    ranked = scores.topk(6, dim=1).indices
    want = top_k_accuracy_score(labels.numpy(), scores.numpy(), k=k, labels=range(9))
    assert figures.top_accuracy(labels, ranked, k) == pytest.approx(want)


def test_similarities_of_embeddings() -> None:
    embeddings = seeded(12, 5)
    np.testing.assert_allclose(figures.cosines(embeddings), cosine_similarity(embeddings.numpy()), atol=1e-6)
    for i in range(12):
        for j in range(12):
            assert figures.dot_products(embeddings)[i, j] == pytest.approx(
                sum(float(a) * float(b) for a, b in zip(embeddings[i], embeddings[j], strict=True)), rel=1e-5
            )


@pytest.mark.parametrize("margin", [None, 0.1, 0.4, 1.3])
def test_pair_similarities_are_those_of_a_double_loop(margin: float | None) -> None:
    features, labels = seeded(60, 4), some_labels(60, 5)
    same: list[float] = []
    other: list[float] = []
    inside: list[bool] = []
    for i in range(60):
        for j in range(60):
            if i == j:
                continue
            s = float(F.cosine_similarity(features[i].double(), features[j].double(), dim=0))
            (same if labels[i] == labels[j] else other).append(s)
            if labels[i] == labels[j] and margin is not None:
                inside.append(min(s + margin, 1.0) == 1.0)
    found = figures.pair_similarity(features, labels, margin)
    assert found.same == pytest.approx(np.mean(same))
    assert found.other == pytest.approx(np.mean(other))
    assert found.inside == (None if margin is None else pytest.approx(np.mean(inside)))


def test_pairs_of_a_class_larger_than_a_block() -> None:
    features, labels = seeded(2500, 3), torch.zeros(2500, dtype=torch.int64)
    z = F.normalize(features.double(), dim=1)
    products = (z @ z.T)[~torch.eye(2500, dtype=torch.bool)]
    found = figures.pair_similarity(features, labels, 0.25)
    assert found.inside == pytest.approx((products >= 0.75).double().mean().item())
    assert found.same == pytest.approx(products.mean().item(), abs=1e-9)
    assert np.isnan(found.other), "there is one class"


def test_classes_of_one_image_have_no_pairs() -> None:
    found = figures.pair_similarity(seeded(4, 3), torch.arange(4), 0.2)
    assert np.isnan(found.same)
    assert found.inside is None


def test_scatter_is_the_same_for_the_same_seed_and_keeps_clusters() -> None:
    labels = some_labels(90, 3)
    features = seeded(90, 8) + 20 * F.one_hot(labels, 8)
    places = figures.scatter(features, seed=3)
    assert (places == figures.scatter(features, seed=3)).all()
    distances = torch.cdist(torch.from_numpy(places), torch.from_numpy(places)).fill_diagonal_(torch.inf)
    assert (labels[distances.argmin(dim=1)] == labels).all()


@pytest.mark.parametrize("count", [4, 5, 10])
def test_scatter_of_a_few_images(count: int) -> None:
    assert figures.scatter(seeded(count, 6), seed=0).shape == (count, 2)
    assert np.isfinite(figures.scatter(seeded(count, 1), seed=0)).all()


def test_stretch_by_hand() -> None:
    stretched = figures.stretch(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), (2, 4))
    assert stretched.tolist() == [[0, 0.25, 0.75, 1]] * 2
    torch.testing.assert_close(figures.stretch(torch.full((3, 3), 7.0), (8, 5)), torch.full((8, 5), 7.0))


def test_anchors_are_of_different_classes_and_no_image_comes_twice() -> None:
    labels = some_labels(40, 4)
    order = np.random.default_rng(0).permutation(40)
    chosen = figures.choose_anchors(labels, order, 3)
    assert len({int(labels[c.anchor]) for c in chosen}) == 3
    for c in chosen:
        assert labels[c.anchor] == labels[c.same] != labels[c.other]
    images = [image for c in chosen for image in (c.anchor, c.same, c.other)]
    assert len(set(images)) == 9
    assert not figures.choose_anchors(torch.zeros(9, dtype=torch.int64), np.arange(9), 3), "no other class"
    assert not figures.choose_anchors(torch.arange(9), np.arange(9), 3), "no second image of a class"


def test_anchor_similarities_are_cosines() -> None:
    features = seeded(5, 7)
    same, other = figures.anchor_similarities(features, figures.Anchor(4, 0, 2))
    assert same == pytest.approx(float(F.cosine_similarity(features[4], features[0], dim=0)), abs=1e-6)
    assert other == pytest.approx(float(F.cosine_similarity(features[4], features[2], dim=0)), abs=1e-6)


def test_examples_are_of_many_classes_first() -> None:
    labels = torch.tensor([0, 0, 0, 1, 2, 0])
    right = torch.tensor([True, True, True, True, False, True])
    assert figures.choose_examples(right, labels, np.array([5, 4, 3, 2, 1, 0]), 3) == [5, 3, 2]
    assert figures.choose_examples(~right, labels, np.arange(6), 3) == [4]


# ---------------------------------------------------------------------------------------------------------------------
# A run's layers


_DRAWN = ("cff", "cfl")
"""Kinds of runs whose pictures are looked at: between them they have every picture."""

_ARGUMENTS = ["--tsne-images", "60", "--examples", "2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Small runs by kind, each trained and analysed once. Of others than ``_DRAWN`` pictures are blank."""
    root, made = tmp_path_factory.mktemp("runs"), {}

    def run(kind: str) -> Path:
        if kind not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(draw, "write", write_blank)
                made[kind] = digits_run(root / kind, kind)
                if kind in _DRAWN:
                    patch.undo()
                assert main(["analyse", str(made[kind]), *_ARGUMENTS]) == 0
        return made[kind]

    return run


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is analysed leaves blank pictures."""
    monkeypatch.setattr(draw, "write", write_blank)


def copied(run: Path, folder: Path) -> Path:
    """A run for a test alone, not yet analysed."""
    return shutil.copytree(run, folder / "run", ignore=shutil.ignore_patterns("analysis"))


def numbers(run: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((run / "analysis" / "analysis.json").read_text())
    return loaded


@pytest.mark.parametrize("kind", ["cfl", "cfl-cosine", "dcl-per-layer"])
def test_attention_is_the_similarity_at_each_position(runs: Callable[[str], Path], kind: str) -> None:
    network = load(runs(kind) / "model.safetensors")
    images, _ = digits("test")
    classes = torch.tensor([[3, 0], [9, 3], [1, 2]])
    for view in network.outputs(images[:3]):
        maps = attention(view, classes)
        width = view.features.shape[1]
        own = dict(network.rules[view.index].named_parameters()).get("embeddings")
        if own is None:
            assert network.embeddings is not None
            shared = F.normalize(network.embeddings, dim=1) if kind == "cfl-cosine" else network.embeddings
            own = nn.AdaptiveAvgPool1d(width)(shared)
        activations = view.outputs["x"]
        rows, columns = maps.shape[2:]
        for n in range(3):
            for k in range(2):
                for y in range(rows):
                    for x in range(columns):
                        # A pixel's channels, or a token.
                        h = activations[n, :, y, x] if activations.dim() == 4 else activations[n, y * columns + x]
                        t = own[classes[n, k]]
                        want = h / h.norm() @ t / 0.07 if kind == "cfl-cosine" else h @ t
                        assert maps[n, k, y, x].item() == pytest.approx(want.item(), rel=1e-4, abs=1e-4)
        assert view.direct is not None
        torch.testing.assert_close(maps.mean(dim=(2, 3)), view.direct.gather(1, classes), rtol=1e-4, atol=1e-4)


def test_records_are_the_network_s_features_and_scores(runs: Callable[[str], Path]) -> None:
    network = load(runs("cfl") / "model.safetensors")
    images, labels = digits("test")
    layers, seen = record(network, [(images[:7], labels[:7]), (images[7:30], labels[7:30])], top=3)
    assert torch.equal(seen, labels[:30])
    with torch.no_grad():
        features = network.features(images[:30])
        scores, direct = network.layer_scores(images[:30]), network.direct_scores(images[:30])
    for layer, h, score, own in zip(layers, features, scores, direct, strict=True):
        torch.testing.assert_close(layer.features, h)
        assert layer.readout is not None and score is not None and layer.direct is not None and own is not None
        assert torch.equal(layer.readout, score.topk(3, dim=1).indices)
        assert torch.equal(layer.direct, own.topk(3, dim=1).indices)


def test_fisher_of_batches_is_that_of_explicit_scatter_matrices(runs: Callable[[str], Path]) -> None:
    network = load(runs("cff") / "model.safetensors")
    images, labels = digits("validate")
    found = fisher(network, [(images[:50], labels[:50]), (images[50:], labels[50:])])
    with torch.no_grad():
        for value, features in zip(found, network.features(images), strict=True):
            assert value == pytest.approx(explicit_fisher(features.double(), labels), rel=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# The command

_ALWAYS = {"fisher.png", "anchors.png", "tsne.png", "accuracy.png", "confusion.png", "confusion-layers.png"}
_EMBEDDED = {"embeddings-cosine.png", "embeddings-dot.png"}
_PICTURES = {
    "cff": _ALWAYS | {"margin.png"},
    "cfl": _ALWAYS | _EMBEDDED | {"attention.png", "embeddings-layers.png"},
    "cfl-cosine": _ALWAYS | _EMBEDDED | {"attention.png"},  # both layers see the same embeddings
    "cfl-mlp": _ALWAYS | _EMBEDDED,  # no grid
    "dcl-per-layer": _ALWAYS | _EMBEDDED | {"attention.png", "embeddings-layers.png"},
}


@pytest.mark.parametrize("kind", _PICTURES)
def test_pictures_follow_from_what_the_method_offers(runs: Callable[[str], Path], kind: str) -> None:
    folder = runs(kind) / "analysis"
    assert {file.name for file in folder.glob("*.png")} == _PICTURES[kind] == set(numbers(runs(kind))["pictures"])
    assert {file.stem for file in folder.glob("*.pdf")} == {Path(name).stem for name in _PICTURES[kind]}
    assert numbers(runs(kind))["pictures_format"] == "pdf"
    assert all(file.read_bytes().startswith(b"%PDF") for file in folder.glob("*.pdf"))


def drawn(run: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures of an analysis, by their files."""
    found: dict[str, Figure] = {}

    def write(figure: Figure, file: Path, vector: str) -> None:
        found[file.name] = figure
        Image.new("RGB", (4, 4)).save(file)

    monkeypatch.setattr(draw, "write", write)
    assert main(["analyse", str(run), "--tsne-images", "0", "--examples", "0", "--images", "80"]) == 0
    return found


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.images]


@pytest.mark.parametrize(
    ("kind", "last", "first"),
    [
        ("cff", "layer 3, by its readout", "layer 1\nby its readout"),
        ("cfl", "layer 2, by its readout", "layer 1\nby its readout"),
        ("dcl-per-layer", "layer 2 alone, by its label embeddings", "layer 1 alone\nby its label embeddings"),
    ],
)
def test_a_confusion_matrix_says_whose_predictions_it_counts(
    kind: str,
    last: str,
    first: str,
    runs: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figures_drawn = drawn(copied(runs(kind), tmp_path), monkeypatch)
    (title,) = titles(figures_drawn["confusion.png"])
    assert title.splitlines()[1] == last
    assert titles(figures_drawn["confusion-layers.png"])[0] == first
    assert f"confusion matrix of {last}" == numbers(tmp_path / "run")["pictures"]["confusion.png"]


def test_every_picture_is_looked_at() -> None:
    assert set().union(*(_PICTURES[kind] for kind in _DRAWN)) == set().union(*_PICTURES.values())


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in _DRAWN else pytest.mark.exhaustive) for kind in _PICTURES]
)
def test_every_picture_is_large_and_shows_something(runs: Callable[[str], Path], kind: str, tmp_path: Path) -> None:
    run = runs(kind)
    if kind not in _DRAWN:
        run = copied(run, tmp_path)
        assert main(["analyse", str(run), *_ARGUMENTS]) == 0
    for file in (run / "analysis").glob("*.png"):
        with Image.open(file) as opened:
            pixels = np.asarray(opened.convert("RGB"), dtype=np.float64)
        assert min(pixels.shape[:2]) >= 450, file
        assert (pixels.min(axis=2) < 240).mean() > 0.01, f"{file} is nearly white"
        assert pixels.std(axis=(0, 1)).max() > 15, file
        assert (pixels[:2] > 250).all() and (pixels[-2:] > 250).all(), f"{file} is cut off"
        assert len(np.unique(pixels @ [65536, 256, 1])) > 20, file


@pytest.mark.parametrize("kind", ["cff", "cfl"])
def test_figures_repeat_those_of_the_run(runs: Callable[[str], Path], kind: str) -> None:
    """The run measured them in its own test and validation passes."""
    summary = json.loads((runs(kind) / "summary.json").read_text())
    for layer, told in zip(numbers(runs(kind))["layers"], summary["layers"], strict=True):
        assert layer["readout_accuracy"] == pytest.approx(told["test_accuracy"])
        assert layer["fisher"] == pytest.approx(told["test_fisher"], rel=1e-3)
        assert layer["fisher_validation"] == pytest.approx(told["validation_fisher"], rel=1e-3)


def test_numbers_are_those_of_the_network(runs: Callable[[str], Path]) -> None:
    found, network = numbers(runs("cfl")), load(runs("cfl") / "model.safetensors")
    images, labels = digits("test")
    with torch.no_grad():
        scores, direct, features = network.layer_scores(images), network.direct_scores(images), network.features(images)
    assert found["num_images"] == len(labels)
    for index, layer in enumerate(found["layers"]):
        score, own = scores[index], direct[index]
        assert score is not None and own is not None
        guesses = score.argmax(dim=1)
        assert layer["direct_accuracy"] == pytest.approx((own.argmax(dim=1) == labels).double().mean().item())
        assert found["confusion"][index] == confusion_matrix(labels.numpy(), guesses.numpy(), labels=range(10)).tolist()
        z = cosine_similarity(features[index].numpy())
        same = (labels[:, None] == labels[None, :]).numpy()
        assert layer["similarity_other"] == pytest.approx(z[~same].mean(), abs=1e-5)
        assert layer["similarity_same"] == pytest.approx(z[same & ~np.eye(len(z), dtype=bool)].mean(), abs=1e-5)
        assert layer["margin_occupancy"] is None
    for anchor in found["anchors"]:
        a, same_class, other = anchor["images"]
        assert [network.classes[int(labels[i])] for i in (a, same_class, other)] == anchor["classes"]
        for index, h in enumerate(features):
            assert anchor["same"][index] == pytest.approx(
                float(F.cosine_similarity(h[a], h[same_class], dim=0)), abs=1e-5
            )
            assert anchor["other"][index] == pytest.approx(float(F.cosine_similarity(h[a], h[other], dim=0)), abs=1e-5)


def test_margin_occupancy_is_that_of_each_layer_s_margin(runs: Callable[[str], Path]) -> None:
    found, network = numbers(runs("cff")), load(runs("cff") / "model.safetensors")
    images, labels = digits("test")
    pairs = (labels[:, None] == labels[None, :]) & ~torch.eye(len(labels), dtype=torch.bool)
    assert [layer["margin"] for layer in found["layers"]] == pytest.approx([0.4, 0.25, 0.1])
    with torch.no_grad():
        for layer, features in zip(found["layers"], network.features(images), strict=True):
            z = F.normalize(features.double(), dim=1)
            inside = ((z @ z.T)[pairs] >= 1 - layer["margin"]).double().mean().item()
            assert layer["margin_occupancy"] == pytest.approx(inside, abs=1e-4)


def test_embeddings_are_what_the_layers_see(runs: Callable[[str], Path]) -> None:
    network = load(runs("cfl") / "model.safetensors")
    assert network.embeddings is not None
    for seen, width in zip(numbers(runs("cfl"))["embeddings"], (8, 16), strict=True):
        pooled = nn.AdaptiveAvgPool1d(width)(network.embeddings).numpy()
        np.testing.assert_allclose(seen["cosine"], cosine_similarity(pooled), atol=1e-5)
        np.testing.assert_allclose(seen["dot"], pooled @ pooled.T, atol=1e-4)


def test_attention_examples_are_right_and_wrong_images_of_the_network(runs: Callable[[str], Path]) -> None:
    found, network = numbers(runs("cfl")), load(runs("cfl") / "model.safetensors")
    images, labels = digits("test")
    with torch.no_grad():
        top = network(images).topk(2, dim=1).indices
        scores = network.layer_scores(images)
    assert len(found["attention"]) == 4
    for number, example in enumerate(found["attention"]):
        image = example["image"]
        assert example["class"] == network.classes[int(labels[image])]
        assert example["guesses"] == [network.classes[guess] for guess in top[image].tolist()]
        assert (example["class"] == example["guesses"][0]) == (number < 2)
        assert [(m["layer"], np.shape(m["values"])) for m in example["maps"]] == [(1, (2, 6, 6)), (2, (2, 3, 3))]
        for shown, score in zip(example["maps"], scores, strict=True):
            assert score is not None
            assert shown["guesses"] == [network.classes[guess] for guess in score[image].topk(2).indices.tolist()]


def test_tsne_is_of_the_named_images(runs: Callable[[str], Path]) -> None:
    found, network = numbers(runs("cff"))["tsne"], load(runs("cff") / "model.safetensors")
    images, labels = digits("test")
    assert labels[found["images"]].tolist() == found["labels"]
    assert len(set(found["images"])) == 60
    with torch.no_grad():
        features = network.features(images)
    for places, h in zip(found["layers"], features, strict=True):
        np.testing.assert_allclose(places, figures.scatter(h[found["images"]], seed=0), rtol=0.02, atol=0.5)


def test_every_key_is_documented(runs: Callable[[str], Path]) -> None:
    documented = (Path(__file__).parent.parent / "docs" / "analysis.md").read_text()

    def keys(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*(keys(inner) for inner in value.values()))
        return set().union(*(keys(inner) for inner in value)) if isinstance(value, list) else set()

    for kind in ("cff", "cfl"):
        found = numbers(runs(kind))
        missing = {key for key in keys(found) - keys(found["method"]) if key not in documented}
        assert not missing


def test_the_table_and_the_files_are_printed(
    runs: Callable[[str], Path], blank: None, tmp_path: Path, capsys: Any
) -> None:
    run = copied(runs("cff"), tmp_path)
    capsys.readouterr()
    assert main(["analyse", str(run), *_ARGUMENTS]) == 0
    printed = capsys.readouterr().out
    found = numbers(run)
    for layer in found["layers"]:
        assert f"{layer['readout_accuracy']:.2%}" in printed
        assert f"{layer['margin_occupancy']:.2%}" in printed
        assert f"{layer['fisher_validation']:.1f}" in printed
    assert all(picture in printed for picture in found["pictures"])


def test_the_run_s_own_files_are_left_alone_and_its_pictures_are_with_it_in_tensorboard(
    runs: Callable[[str], Path], blank: None, tmp_path: Path
) -> None:
    run = copied(runs("cfl"), tmp_path)
    for earlier in run.glob("events.*.analysis"):
        earlier.unlink()
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    assert main(["analyse", str(run), "--tsne-images", "0"]) == 0
    after = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    assert {name: after.get(name) for name in before} == before
    (added,) = (run / name for name in after.keys() - before.keys() - {".lock"})
    wanted = {f"analysis/{Path(picture).stem}" for picture in numbers(run)["pictures"]}
    assert wanted == set(EventAccumulator(str(added)).Reload().Tags()["images"])
    tags = EventAccumulator(str(run)).Reload().Tags()
    assert wanted < set(tags["images"])
    assert "test accuracy/layer 1" in tags["scalars"]
    with FileLock(run / ".lock"):  # while the run writes there itself
        assert main(["analyse", str(run), "--tsne-images", "0"]) == 0
    assert {file.name: file.read_bytes() for file in run.iterdir() if file.name in before and file.is_file()} == before
    assert not added.exists() and list((run / "analysis").glob("events.*.analysis"))


def test_another_analysis_takes_the_place_of_the_first_and_of_nothing_else(
    runs: Callable[[str], Path], blank: None, tmp_path: Path
) -> None:
    run = copied(runs("cfl"), tmp_path)
    folder = run / "analysis"
    assert main(["analyse", str(run), "--images", "50"]) == 0
    first = numbers(run)
    assert (folder / "tsne.pdf").exists()
    (folder / "notes.png").write_bytes(b"mine")
    (folder / "confusion.eps").write_bytes(b"mine too")
    arguments = ["--tsne-images", "0", "--examples", "0", "--split", "validate", "--format", "svg"]
    assert main(["analyse", str(run), *arguments]) == 0
    left = {file.name for file in folder.iterdir()}
    assert "tsne.png" in first["pictures"] and "attention.png" in first["pictures"]
    assert not {"tsne.png", "attention.png"} & left
    assert not [name for name in left if name.endswith(".pdf")]
    assert {Path(name).with_suffix(".svg").name for name in numbers(run)["pictures"]} <= left
    assert (folder / "notes.png").read_bytes() == b"mine"
    assert (folder / "confusion.eps").exists()
    assert sum(file.name.endswith(".analysis") for file in run.iterdir()) == 1
    found = numbers(run)
    assert (found["split"], found["num_images"]) == ("validation", 144)
    assert all(layer["fisher"] == layer["fisher_validation"] for layer in found["layers"])


def test_the_seed_draws_the_images(runs: Callable[[str], Path], blank: None, tmp_path: Path) -> None:
    run = copied(runs("cff"), tmp_path)

    def drawn(*arguments: str) -> dict[str, Any]:
        assert main(["analyse", str(run), "--images", "40", *arguments]) == 0
        return numbers(run)

    first, again, other = drawn(), drawn("--batch-size", "7"), drawn("--seed", "1")
    assert first["num_images"] == len(set(first["tsne"]["images"])) == 40
    assert first["tsne"]["images"] == again["tsne"]["images"] != other["tsne"]["images"]
    assert first["confusion"] == again["confusion"]
    _, labels = digits("test")
    assert labels[first["tsne"]["images"]].tolist() == first["tsne"]["labels"]


def test_super_classes_order_the_matrices(
    runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "groups").write_text("odd: 1, 3, 5, 7, 9\neven: 0, 2, 4, 6, 8")
    run, write = copied(runs("cfl-mlp"), tmp_path), draw.write

    def write_the_matrix(figure: Figure, file: Path, *vectors: draw.Vector) -> None:
        (write if file.name == "confusion.png" else write_blank)(figure, file, *vectors)

    monkeypatch.setattr(draw, "write", write_the_matrix)
    arguments = ["--tsne-images", "0", "--examples", "0"]
    assert main(["analyse", str(run), *arguments]) == 0
    before = (run / "analysis" / "confusion.png").read_bytes()
    assert main(["analyse", str(run), *arguments, "--superclasses", str(tmp_path / "groups")]) == 0
    found = numbers(run)
    assert found["superclasses"] == {"odd": list("13579"), "even": list("02468")}
    assert found["classes"] == list("0123456789"), "numbers stay in label order"
    assert (run / "analysis" / "confusion.png").read_bytes() != before


MISTAKES = {
    "no run": (["nowhere"], ["nowhere", "run folder"]),
    "one image": (["RUN", "--images", "1"], ["--images 1", "at least 2"]),
    "t-SNE of fewer than none": (["RUN", "--tsne-images", "-1"], ["--tsne-images -1"]),
    "fewer than no example": (["RUN", "--examples", "-1"], ["--examples -1"]),
    "no batch": (["RUN", "--batch-size", "0"], ["--batch-size 0"]),
    "unknown super-classes": (["RUN", "--superclasses", "cifar"], ["--superclasses cifar", "Known"]),
    "super-classes of other data": (["RUN", "--superclasses", "cifar100"], ["are no classes of this run"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake: str, runs: Callable[[str], Path], capsys: Any) -> None:
    arguments, said = MISTAKES[mistake]
    run = runs("cff")
    before = numbers(run)
    capsys.readouterr()
    assert main(["analyse", *(str(run) if argument == "RUN" else argument for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert all(part in error for part in said), error
    assert numbers(run) == before


def test_a_machine_without_matplotlib_gets_one_sentence(
    runs: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run = runs("cff")
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["analyse", str(run)]) == 2
    error = capsys.readouterr().err
    assert "pip install matplotlib" in error
    assert len(error.strip().splitlines()) == 1


def test_data_of_other_classes_are_refused(runs: Callable[[str], Path], tmp_path: Path, capsys: Any) -> None:
    run = copied(runs("cff"), tmp_path)
    rng = np.random.default_rng(0)
    for name in ("dark", "light"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(60):
            Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(
                tmp_path / "photos" / name / f"{number}.png"
            )
    config = json.loads((run / "config.json").read_text())
    config["settings"]["data"]["data"] = str(tmp_path / "photos")
    (run / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    assert main(["analyse", str(run)]) == 2
    assert "other classes" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Pictures of many classes and layers

_HUNDRED = [f"class_number_{label}" for label in range(100)]
_GROUPS = [(f"a_group_with_a_long_name_{number}", 5) for number in range(20)]


def _many() -> dict[str, Callable[[], Figure]]:
    rng = np.random.default_rng(0)
    matrix, places = rng.random((100, 100)), rng.random((300, 2))
    plain, grouped = Classes(_HUNDRED, range(100)), Classes(_HUNDRED, list(range(99, -1, -1)), _GROUPS)
    named = Classes([f"a_class_with_a_very_long_name_{label}" for label in range(10)], range(10))
    titles = [f"layer {number}" for number in range(1, 14)]
    image, map_ = rng.random((64, 64, 3)), rng.random((64, 64))
    example = Example(image=image, label=_HUNDRED[0], guesses=_HUNDRED[:2], maps=[[map_] * 4] * 2)
    cast_to_send = Example(image=image, label=_GROUPS[0][0], guesses=[_GROUPS[1][0]] * 2, maps=[[map_]] * 2)
    row = AnchorRow(images=[image] * 3, labels=_HUNDRED[:3], same=[0.9] * 13, other=[-0.3] * 13)
    return {
        "confusion": lambda: draw.confusion(matrix, plain, title="a net"),
        "confusion in groups": lambda: draw.confusion(matrix, grouped, title="a net"),
        "confusions": lambda: draw.confusions([matrix] * 13, titles, plain),
        "confusions in groups": lambda: draw.confusions([matrix] * 13, titles, grouped),
        "confusions with names": lambda: draw.confusions([matrix[:10, :10]] * 5, titles[:5], named),
        "similarities with names": lambda: draw.similarities([matrix[:10, :10]] * 3, titles[:3], named, label="cosine"),
        "similarity": lambda: draw.similarity(matrix - 0.5, plain, title="a net", label="cosine"),
        "similarities": lambda: draw.similarities([matrix - 0.5] * 13, titles, grouped, label="cosine"),
        "matrix of 200": lambda: draw.confusion(
            rng.random((200, 200)), Classes([f"n{i}" for i in range(200)], range(200)), title="a net"
        ),
        "scatters": lambda: draw.scatters([places] * 13, titles, rng.integers(0, 100, 300), _HUNDRED),
        "scatters of 15": lambda: draw.scatters([places], titles[:1], rng.integers(0, 15, 300), _HUNDRED),
        "attention": lambda: draw.attention(
            {"predicted right": [example], "predicted wrong": [example] * 8}, titles[:4]
        ),
        "attention without mistakes": lambda: draw.attention({"right": [example], "wrong": []}, titles[:4]),
        "attention of one layer": lambda: draw.attention({"predicted right": [cast_to_send] * 3}, titles[:1]),
        "anchors": lambda: draw.anchors([row] * 3, [0.8] * 13, [0.1] * 13),
        "lines": lambda: draw.lines({"readout": [0.1] * 13, "without": [None, *[0.2] * 12]}, label="y", percent=True),
        "margins": lambda: draw.margins([0.001, 0.5, 1.0], [0.4, 0.2, 0.1]),
        "a class named $x^2$": lambda: draw.confusion(
            np.eye(2), Classes(["$x^2$", "$\\broken{"], range(2)), title="$a$"
        ),
    }


@pytest.mark.parametrize("name", _many())
def test_pictures_of_much_fit_their_page(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns where a layout does not fit
        draw.write(_many()[name](), tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as opened:
        pixels = np.asarray(opened.convert("L"))
    inches = [side / 200 for side in pixels.shape]
    assert max(inches) < 14
    assert (pixels[:, :2] > 250).all() and (pixels[:, -2:] > 250).all(), "cut off at the sides"
    assert (pixels[:2] > 250).all() and (pixels[-2:] > 250).all(), "cut off above or below"
    assert (pixels < 240).mean() > 0.01


def test_a_picture_is_the_same_bytes_again(tmp_path: Path) -> None:
    for name in ("one", "two"):
        draw.write(_many()["confusions with names"](), tmp_path / f"{name}.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
