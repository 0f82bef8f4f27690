"""`--log`: the places where figures are kept beside TensorBoard, each for real, without a network."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from launch import Run, resume, train
from launch.output.logs.base import RunFacts
from launch.output.logs.figures import Charts, Figure
from launch.output.logs.places import Logs
from pipeline.errors import UserError

_SMALL: dict[str, Any] = {
    "data": "digits",
    "executor": "serial",
    "dim": 16,
    "heads": 2,
    "depth": 2,
    "batch_size": 256,
    "epochs": 2,
    "readout_epochs": 1,
    "quiet": True,
}


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}: pip install 'localpipe[{package}]'")


@pytest.fixture
def quiet_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All of them keep what they have in a folder, and call nobody."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def validation(run: Run) -> list[float]:
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if (line["kind"], line.get("layer")) == ("validate", 2)]


@pytest.mark.slow
def test_mlflow_has_the_run_s_figures_settings_and_pictures_also_when_it_goes_on(quiet_places: Path) -> None:
    needs("mlflow")
    from mlflow import MlflowClient

    run = train("cff-vit", **_SMALL, log=("tensorboard", "mlflow"), run_dir=quiet_places / "it")
    more = resume(run.folder, epochs=3, quiet=True)
    client = MlflowClient()
    experiment = client.get_experiment_by_name("localpipe")
    assert experiment is not None
    (kept,) = client.search_runs([experiment.experiment_id])
    assert (kept.info.run_name, kept.info.status) == ("it", "FINISHED")
    assert kept.data.params["train.epochs"] == "2" and kept.data.params["net.dim"] == "16"
    losses = client.get_metric_history(kept.info.run_id, "validate loss/layer 2")
    assert [(one.step, one.value) for one in losses] == list(zip((5, 10, 15), validation(more), strict=True))
    assert kept.data.metrics["result/test accuracy"] == pytest.approx(more.summary["test_accuracy"])
    assert {file.path for file in client.list_artifacts(kept.info.run_id)} == {"curves.png"}
    assert list(run.folder.glob("events.out.tfevents*")), "the other place is served as well"


@pytest.mark.slow
def test_wandb_keeps_the_run_for_later_without_a_network(quiet_places: Path) -> None:
    needs("wandb")
    run = train("cff-vit", **_SMALL, log=("wandb",), run_dir=quiet_places / "it")
    (kept,) = (run.folder / "wandb").glob("offline-run-*/run-it.wandb")
    content = kept.read_bytes()
    for text in (b"validate loss/layer 2", b"training step", b"result/test accuracy", b"train.lr"):
        assert text in content
    assert not list(run.folder.glob("events.out.tfevents*")), "TensorBoard was not asked for"


@pytest.mark.slow
def test_trackio_has_the_run_s_figures(quiet_places: Path) -> None:
    needs("trackio")
    import sqlite3

    run = train("cff-vit", **_SMALL, log=("trackio",), run_dir=quiet_places / "it")
    (file,) = (quiet_places / "trackio").glob("localpipe*.db")
    with sqlite3.connect(file) as opened:
        rows = opened.execute("SELECT step, metrics FROM metrics ORDER BY id").fetchall()
    told = {step: json.loads(said) for step, said in rows if b"validate loss/layer 2" in bytes(str(said), "utf-8")}
    assert [told[step]["validate loss/layer 2"] for step in (5, 10)] == pytest.approx(validation(run))


@pytest.mark.parametrize("kind", ["wandb", "mlflow", "trackio"])
def test_a_package_that_is_missing_is_named_before_anything_is_done(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == kind else found(name, *rest))
    with pytest.raises(
        UserError, match=rf"`log` {kind}: {kind} is not installed. Install it with: pip install 'localpipe"
    ):
        train("cff-vit", **_SMALL, log=(kind,), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_place_that_fails_costs_no_other_one_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from launch.output.logs import places
    from launch.output.logs.tensorboard import TensorBoard

    class Broken(TensorBoard):
        kind = "broken"

        def write(self, figures: Any) -> None:
            raise ConnectionError("nobody answers")

    monkeypatch.setitem(places.SINKS, "broken", Broken)
    said: list[str] = []
    charts = Charts(("utilisation",), ("train loss",))
    facts = RunFacts(folder=tmp_path, name="it", settings={"train.lr": 1.0}, config={}, charts=charts, resumed=False)
    logs = Logs(facts, said.append, ["broken", "tensorboard"])
    for step in (1, 2):
        logs.write([Figure("train loss", "layer 1", 0.5, step, 0.0)])
    logs.finish({"result/test accuracy": 0.5}, 2)
    assert said == ["broken: nothing more is logged there (ConnectionError: nobody answers). Training goes on."]
    assert list(tmp_path.glob("events.out.tfevents*"))
