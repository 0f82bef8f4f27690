"""A run in this process, without Ray: from settings to what it learned, in one call."""

from __future__ import annotations

from pipeline.config.build import build_run, expand_baseline, open_data
from pipeline.config.devices import local_devices
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import Settings
from pipeline.data.loader import Dataset
from pipeline.errors import UserError
from pipeline.runtime.checkpointing import NO_CHECKPOINTS, Checkpointing
from pipeline.runtime.history import RunResult
from pipeline.runtime.observer import Observer
from pipeline.runtime.serial import train_serial
from pipeline.runtime.threads import train_threads


def train(
    settings: Settings,
    observer: Observer = Observer(),  # noqa: B008 (it has no state)
) -> RunResult:
    """Trains as settings say, with a net, method and data set of ours or registered by the caller.

    ``settings.pipeline.executor`` is "serial", one plain loop, or "threads", a thread per stage. Nothing is printed or
    written. ``pipeline.export.network_of(result.weights, card_of(result.spec))`` is the network.

    Args:
        observer: watches the run and may stop it.

    Raises:
        UserError: settings that cannot be; the message says what can.
        RunError: the run failed; its ``result`` holds what was learned before.
    """
    settings = expand_baseline(settings)
    pipe = settings.pipeline
    if pipe.executor == "ray":
        raise UserError("`executor` ray is of `launch`. Use `executor` serial or threads in this process.")
    if settings.start_from is not None:
        raise UserError("`start_from` is of `launch`, which reads run folders. Leave it out.")
    dataset = open_data(settings)
    spec = build_run(settings, local_devices(pipe.device, pipe.threads, pipe.precision), dataset=dataset)
    return train_here(spec, dataset, observer)


def train_here(
    spec: RunSpec,
    dataset: Dataset,
    observer: Observer = Observer(),  # noqa: B008 (it has no state)
    checkpointing: Checkpointing = NO_CHECKPOINTS,
) -> RunResult:
    """Runs what ``build_run`` built. Arguments and errors as ``pipeline.runtime.serial.train_serial``."""
    run = train_serial if spec.settings.pipeline.executor == "serial" else train_threads
    return run(spec, dataset, observer, checkpointing)
