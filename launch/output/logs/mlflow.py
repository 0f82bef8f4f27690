"""MLflow, where ``MLFLOW_TRACKING_URI`` says: a server, or a folder such as file:///data/mlruns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from launch.output.logs.base import PROJECT, RunFacts, Sink
from launch.output.logs.figures import Figure

_METRICS, _PARAMS = 1000, 100  # that it takes in one call


class MLflow(Sink):
    """A run of the experiment "localpipe", with the run's name."""

    kind: ClassVar[str] = "mlflow"
    package = "mlflow"

    def __init__(self, facts: RunFacts) -> None:
        super().__init__(facts)
        import mlflow  # noqa: PLC0415 (seconds, and only where it was asked for)
        from mlflow import entities  # noqa: PLC0415

        self._entities: Any = entities
        self._client: Any = mlflow.MlflowClient()
        experiment = self._client.get_experiment_by_name(PROJECT)
        number = self._client.create_experiment(PROJECT) if experiment is None else experiment.experiment_id
        self._run = self._run_in(number)

    def _run_in(self, experiment: str) -> str:
        """The run's number: of a run that goes on the one that it had."""
        name = self.facts.name
        if self.facts.resumed:
            found = self._client.search_runs([experiment], f"attributes.run_name = '{name}'", max_results=1)
            if found:
                number = str(found[0].info.run_id)
                self._client.update_run(number, status="RUNNING")
                return number
        number = str(self._client.create_run(experiment, run_name=name).info.run_id)
        params = [self._entities.Param(key, str(value)[:6000]) for key, value in self.facts.settings.items()]
        for part in _in_parts(params, _PARAMS):
            self._client.log_batch(number, params=part)
        return number

    def write(self, figures: Sequence[Figure]) -> None:
        metrics = [self._entities.Metric(one.tag, one.value, int(one.at * 1000), one.step) for one in figures]
        for part in _in_parts(metrics, _METRICS):
            self._client.log_batch(self._run, metrics=part)

    def picture(self, name: str, file: Path, step: int) -> None:
        self._client.log_artifact(self._run, str(file))

    def flush(self) -> None:
        return None  # every call has written

    def finish(self, outcome: Mapping[str, float], step: int) -> None:
        for name, value in outcome.items():
            self._client.log_metric(self._run, name, value, step=step)
        self._client.set_terminated(self._run)


def _in_parts(values: Sequence[Any], size: int) -> list[list[Any]]:
    return [list(values[start : start + size]) for start in range(0, len(values), size)]
