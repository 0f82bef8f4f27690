"""`launch dashboard`: a person opens one page and sees all stages in one chart each, with the run's own values."""

from __future__ import annotations

import json
import re
import signal
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from launch import train
from launch.cli import main
from tests.support_browser import CHROMIUM, Browser
from tests.support_cli import Launched, launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages, a layer and two, twenty epochs, with real pictures."""
    folder = tmp_path_factory.mktemp("runs") / "the-run"
    train(
        "cff-vit", data="digits", executor="threads", stages=2, dim=16, heads=2, depth=3, epochs=20,
        readout="online", log_every=0.1, quiet=True, run_dir=folder,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def served(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Launched, str]]:
    """The command as it serves, and the address that it printed."""
    launched = launch(tmp_path_factory.mktemp("served"), "dashboard", str(run), shared=True)
    launched.wait_for("Ctrl-C ends it.", 120)
    found = re.search(r"1 run: (http://127\.0\.0\.1:\d+/)#custom_scalars", launched.text())
    assert found is not None, launched.text()
    try:
        end = time.monotonic() + 120
        while not _is_read(found[1]):  # after it has begun to serve
            assert time.monotonic() < end, "TensorBoard does not come to the end of the run"
            time.sleep(0.2)
        yield launched, found[1]
        launched.stop(signal.SIGINT)
        assert launched.finish() == 0, launched.text()
        launched.assert_nothing_left()
    finally:
        launched.end()


def _is_read(url: str) -> bool:
    """Whether TensorBoard has come to what a run writes last."""
    results = asked(url, "plugin/scalars/tags").get("the-run", {})
    return "result/images per second" in results and "pipeline" in asked(url, "plugin/images/tags").get("the-run", {})


def asked(url: str, path: str, **query: str) -> Any:
    whole = f"{url}data/{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(whole, timeout=60) as answer:  # noqa: S310 (the address that the command printed)
        return json.load(answer)


def test_every_chart_of_the_first_page_has_a_line_for_each_stage_or_layer(served: tuple[Launched, str]) -> None:
    _, url = served
    shown = {one["title"]: one["chart"] for one in asked(url, "plugin/custom_scalars/layout")["category"]}
    assert list(shown) == ["Stages", "Layers", "Whole run"]
    counts = {"Stages": 2, "Layers": 3}
    for category, charts in shown.items():
        for chart in charts:
            (pattern,) = chart["multiline"]["tag"]
            found = asked(url, "plugin/custom_scalars/scalars", run="the-run", tag=pattern)
            wanted = counts.get(category, 2 if "ideal" in chart["title"] else 1)
            assert found["regex_valid"] and len(found["tag_to_events"]) == wanted, chart["title"]
    assert [chart["title"] for chart in shown["Stages"]][:4] == ["utilisation", "wait_in", "wait_out", "copy"]
    assert "sync" not in str(shown), "CFF has no state that layers share"


def test_the_values_are_the_run_s(served: tuple[Launched, str], run: Path) -> None:
    _, url = served
    summary = json.loads((run / "summary.json").read_text())
    steps = 20 * 20  # an epoch of digits has 20 steps of 64 images

    def last(tag: str) -> tuple[int, float]:
        _, step, value = asked(url, "plugin/scalars/scalars", run="the-run", tag=tag)[-1]
        return step, value

    for layer in summary["layers"]:
        step, value = last(f"test accuracy/layer {layer['layer']}")
        assert value == pytest.approx(layer["test_accuracy"], rel=1e-6)
        assert step == steps == last(f"step loss/layer {layer['layer']}")[0]
    for stage in summary["speed"]["stages"]:
        shares = ("utilisation", "wait_in", "wait_out", "copy", "sync", "other")
        values = [
            asked(url, "plugin/scalars/scalars", run="the-run", tag=f"{s}/stage {stage['stage']}") for s in shares
        ]
        for moment in zip(*values, strict=True):
            assert sum(value for _, _, value in moment) == pytest.approx(1.0, abs=0.02)
    assert last("result/images per second")[1] == pytest.approx(summary["speed"]["images_per_second"], rel=1e-6)


def test_settings_and_pictures_are_the_same_run_s(served: tuple[Launched, str]) -> None:
    _, url = served
    assert asked(url, "runs") == ["the-run"]
    assert {"curves", "pipeline"} <= set(asked(url, "plugin/images/tags")["the-run"])
    assert "config.json/text_summary" in asked(url, "plugin/text/tags")["the-run"]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_all_stages_in_one_chart(served: tuple[Launched, str], run: Path, tmp_path: Path) -> None:
    _, url = served
    with Browser(tmp_path) as browser:
        browser.open(f"{url}#custom_scalars")
        browser.wait_for("Stages", "utilisation", "wait_in", "images per second", "memory MiB", "Matches (2)")
        browser.screenshot(tmp_path / "stages.png")
        browser.open(f"{url}#hparams")
        browser.wait_for("train.lr", "method.temperature", "result/test accuracy")
    with Image.open(tmp_path / "stages.png") as image:
        colours = image.convert("RGB").getcolors(1 << 24)
    assert colours is not None and len(colours) > 50, "the page is not blank"


def test_what_cannot_be_shown_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboard", str(tmp_path)]) == 2
    assert f"error: {tmp_path}: holds no run. Give run folders, or a folder of them." in capsys.readouterr().err
