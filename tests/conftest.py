"""What tests share: a data folder of their own, small runs, and one Ray cluster for all that need one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline import resolve
from pipeline.data.loader import Dataset
from pipeline.nets import VitSettings
from pipeline.resolve import Devices
from pipeline.rules import CffSettings
from pipeline.settings import DataSettings, HeadSettings, PipelineSettings, Settings, TrainSettings
from pipeline.spec import RunSpec

REPORT = pytest.StashKey[list[str]]()
"""Lines that a test module has printed at the end, such as which commands of the documents it ran."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints what test modules left to say."""
    for line in config.stash.get(REPORT, []):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prepared data sets of the tests, apart from those of whoever runs them."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALPIPE_DATA", str(folder))
        yield folder


@pytest.fixture(scope="session")
def small_settings() -> Settings:
    """Digits, four small encoder layers, 2 epochs of 40 steps with validation, then readouts and test."""
    return Settings(
        data=DataSettings(data="digits"),
        net=VitSettings(dim=16, heads=2, depth=4),
        method=CffSettings(views=2),
        train=TrainSettings(epochs=2, batch_size=32),
        head=HeadSettings(head_epochs=1),
        pipeline=PipelineSettings(executor="serial", device="cpu", stall_timeout=60),
    )


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A Ray cluster of this machine for all tests that need one: starting one each would take most of their time."""
    import ray

    ray.init(
        address="local",
        num_cpus=8,
        object_store_memory=256 << 20,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Threads per process are part of a run's settings; tests start from the default."""
    torch.set_num_threads(1)


def make_run(settings: Settings, *, stages: int | None = None) -> tuple[RunSpec, Dataset]:
    """A run's spec and data, on CPU devices."""
    if stages is not None:
        settings = replace(settings, pipeline=replace(settings.pipeline, stages=stages))
    resolve.check(settings)
    dataset = resolve.open_data(settings)
    return resolve.place(resolve.resolve(settings, dataset), dataset, Devices("cpu", 2)), dataset
