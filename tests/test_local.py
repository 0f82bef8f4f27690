"""The pipeline in threads: what a run leaves behind in its process."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from pipeline.config.settings import Settings
from pipeline.methods import CffSettings, CflSettings, MethodConfig
from pipeline.runtime.threads import train_threads
from tests.conftest import make_run


@pytest.mark.parametrize("method", [CffSettings(), CflSettings()], ids=["cff", "cfl"])
def test_no_thread_of_a_run_outlives_it(small_settings: Settings, method: MethodConfig) -> None:
    """Symptom: a run that had finished well sometimes ended with "terminate called without an active exception" and
    exit status 134, when the interpreter ended before the feeder did.
    """
    pipe = replace(small_settings.pipeline, executor="threads", feeders=2)
    train = replace(small_settings.train, epochs=1)
    before = threading.enumerate()
    result = train_threads(*make_run(replace(small_settings, method=method, pipeline=pipe, train=train), stages=3))
    assert result.status == "finished"
    assert set(threading.enumerate()) <= set(before)
