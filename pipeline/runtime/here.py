"""A run in this process, without Ray: from settings to what it learned, in one call."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.config.build import build_run, open_data, settle_baseline
from pipeline.config.devices import local_devices
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import Settings
from pipeline.data.loader import Dataset
from pipeline.errors import UserError
from pipeline.runtime.history import RunResult
from pipeline.runtime.serial import train_serial
from pipeline.runtime.threads import train_threads
from pipeline.telemetry.reports import PassReport, Status


def train(
    settings: Settings,
    *,
    observe: Callable[[PassReport], None] = lambda report: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> RunResult:
    """Trains as settings say, with a net, method and data set of ours or registered by the caller.

    ``settings.pipeline.executor`` is "serial", one plain loop, or "threads", a thread per stage. Nothing is printed or
    written. ``pipeline.export.network_of(result.weights, card_of(result.spec))`` is the network.

    Args:
        observe: gets a report after every pass over a split.
        interrupted: looked at before every batch; what was learned until then is kept.

    Raises:
        UserError: settings that cannot be; the message says what can.
        RunError: the run failed; its ``result`` holds what was learned before.
    """
    settings = settle_baseline(settings)
    pipe = settings.pipeline
    if pipe.executor == "ray":
        raise UserError("`executor` ray is of `launch`. Use `executor` serial or threads in this process.")
    dataset = open_data(settings)
    spec = build_run(settings, local_devices(pipe.device, pipe.threads), dataset=dataset)
    return train_here(spec, dataset, observe=observe, interrupted=interrupted)


def train_here(
    spec: RunSpec,
    dataset: Dataset,
    *,
    observe: Callable[[PassReport], None] = lambda report: None,
    follow: Callable[[list[Status]], None] = lambda statuses: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> RunResult:
    """Runs what ``build_run`` built. Arguments and errors as ``pipeline.runtime.serial.train_serial``."""
    run = train_serial if spec.settings.pipeline.executor == "serial" else train_threads
    return run(spec, dataset, observe=observe, follow=follow, interrupted=interrupted)
