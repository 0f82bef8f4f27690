"""The real pipeline beside its prediction: the actors of a person's run, for a few steps."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from statistics import median

import ray
from rich.console import Console

from launch.bench.ours import PipelineRunner, drain, turns_of
from launch.bench.protocol import Round
from launch.output.console import say
from pipeline.config.build import build_run
from pipeline.config.devices import Devices
from pipeline.config.settings import Settings
from pipeline.data.loader import Dataset
from pipeline.planning.predict import Prediction, listed, shown
from workers.cluster import ray_cluster

_ROUNDS = 3
_ROUND = 8.0  # seconds of a round, as far as the prediction is right
_FEWEST, _MOST = 4, 200  # steps of a round
_WARM = 3  # steps of a round before the measured ones, beside those that fill the queues


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A prediction, and what the pipeline did.

    Attributes:
        rounds: images per second of each round.
        utilisation: of each stage, over the last round.
    """

    prediction: Prediction
    rounds: tuple[float, ...]
    utilisation: tuple[float, ...]

    @property
    def images_per_second(self) -> float:
        """The rounds' median."""
        return median(self.rounds)

    @property
    def difference(self) -> float:
        """By which share the prediction lies above what was measured."""
        return self.prediction.images_per_second / self.images_per_second - 1


def measure(
    settings: Settings,
    dataset: Dataset,
    devices: Devices,
    predictions: list[Prediction],
    console: Console,
    *,
    max_steps: int | None = None,
) -> list[Measurement]:
    """Runs each prediction's pipeline in turn, a few rounds each.

    Args:
        max_steps: one round of at most so many steps, for a quick look; None for rounds of some seconds.

    Raises:
        RunError: a pipeline failed, or the devices are not to be had.
    """
    most = max(len(prediction.stages) for prediction in predictions)
    pipe = replace(settings.pipeline, executor="ray")
    measured = []
    # A private cluster has room for the longest of the pipelines; one that was joined has the room that it has.
    largest = replace(settings, pipeline=replace(pipe, stages=most, partition="even"))
    with nullcontext() if ray.is_initialized() else ray_cluster(largest):
        for prediction in predictions:
            say(console, f"running {shown(prediction.stages)} …")
            sizes = tuple(len(layers) for layers in prediction.stages)
            divided = replace(settings, pipeline=replace(pipe, stages=len(sizes), partition=sizes))
            spec = build_run(divided, devices, dataset=dataset)
            predicted_steps = _ROUND * prediction.images_per_second / settings.train.batch_size
            steps = min(_MOST, max(_FEWEST, round(predicted_steps)), max_steps or _MOST)
            # Stages that share a core are at their pace once the queues between them are full.
            warm = min(_WARM + drain(spec), max_steps or _MOST)
            turns = turns_of(spec, "feeder", warm=warm, steps=steps)
            runner = PipelineRunner("plan", listed(prediction.stages), turns, warm=warm)
            try:
                runner.start()
                rounds = [runner.round(steps) for _ in range(_ROUNDS if max_steps is None else 1)]
            finally:
                runner.close()
            measured.append(
                Measurement(
                    prediction=prediction,
                    rounds=tuple(one.images / one.seconds for one in rounds),
                    utilisation=_utilisation(rounds[-1]),
                )
            )
    return measured


def _utilisation(turn: Round) -> tuple[float, ...]:
    return tuple(device.seconds["busy"] / turn.seconds for device in turn.devices)
