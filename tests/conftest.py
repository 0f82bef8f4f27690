"""What tests share: a data folder of their own, small runs, and one Ray cluster for all that need one."""

from __future__ import annotations

import fcntl
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from xdist.scheduler import LoadFileScheduling

from pipeline.config import build
from pipeline.config.build import build_run
from pipeline.config.devices import Devices
from pipeline.config.run_spec import RunSpec
from pipeline.config.settings import DataSettings, PipelineSettings, ReadoutSettings, Settings, TrainSettings
from pipeline.data.loader import Dataset
from pipeline.methods import CffSettings
from pipeline.nets import VitSettings
from tests.support_cli import end_all
from tests.support_pictures import write_blank

hypothesis.settings.register_profile("busy machine", deadline=None)  # a slow example is no wrong one
hypothesis.settings.load_profile("busy machine")

_ATTEMPTS = 3  # to start Ray

RAN = "documented command"
"""Name of the property under which a test tells which command it ran."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Lists what tests say they ran, such as the documents' commands, with the seconds that each took."""
    passed = terminalreporter.stats.get("passed", [])
    ran = [
        f"{report.duration:6.1f} s  {said}" for report in passed for name, said in report.user_properties if name == RAN
    ]
    if ran:
        terminalreporter.write_line(f"{len(ran)} documented commands ran:")
        for line in ran:
            terminalreporter.write_line(line)


# ---------------------------------------------------------------------------------------------------------------------
# Several tests at a time: `pytest -n 3`, as `make pytest` does: one more than there are cores, as tests that start
# processes wait for half of their time. Without -n nothing here changes anything.

_HERE = Path(__file__).parent
_LONGEST = ("test_documented_commands.py", "test_resume_command.py", "test_lasting.py", "test_analyse.py")
"""Files that begin first, the longest first, so that no process ends long before the others."""

_SLOW = {"cluster", "launched_run", "runs", "reader"}
"""Fixtures that start processes, every one of which imports torch, or train and draw for long."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on what is slow to make are slow. Of several processes' work, the longest first, then the files with the
    most tests."""
    for item in items:
        if not _SLOW.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    if items and _is_worker(items[0].config):
        counts = Counter(item.path.name for item in items)
        longest = {name: place for place, name in enumerate(_LONGEST)}

        def place(item: pytest.Item) -> tuple[int, int]:
            name = item.path.name
            return longest.get(name, len(_LONGEST)), -counts[name]

        items.sort(key=place)


def _is_worker(config: pytest.Config) -> bool:
    """Whether this is one of several processes that share the tests out.

    Not by the environment: a test that starts pytest itself, as `launch doctor --gpu` does, hands its own down, and
    that pytest would wait for the test that waits for it.
    """
    return hasattr(config, "workerinput")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """A file's tests share what they make, so they go to one process."""
    config.option.loadscopereorder = False  # the order above, rather than that of the numbers of tests
    return LoadFileScheduling(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around all else: waiting does not count as the test's time
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test marked ``alone`` waits until no other process runs one, and then all others wait for it."""
    if not _is_worker(item.config):
        return (yield)
    door, room = os.open(_HERE, os.O_RDONLY), os.open(__file__, os.O_RDONLY)
    try:
        fcntl.flock(door, fcntl.LOCK_EX)  # who wants the room alone is let in before those that come later
        fcntl.flock(room, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        return (yield)
    finally:
        for lock in (room, door):
            fcntl.flock(lock, fcntl.LOCK_UN)  # closing alone would leave it to a process that was forked meanwhile
            os.close(lock)


# ---------------------------------------------------------------------------------------------------------------------
# Fixtures


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prepared data sets of the tests, apart from those of whoever runs them."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALPIPE_DATA", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def no_other_ray() -> Iterator[None]:
    """Runs of tests start Ray for themselves, also where a node of somebody's cluster runs on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")
        yield


@pytest.fixture(scope="session")
def small_settings() -> Settings:
    """Digits, four small encoder layers, 2 epochs of 40 steps with validation, then readouts and test."""
    return Settings(
        data=DataSettings(data="digits"),
        net=VitSettings(dim=16, heads=2, depth=4),
        method=CffSettings(views=2),
        train=TrainSettings(epochs=2, batch_size=32),
        readout=ReadoutSettings(readout_epochs=1),
        pipeline=PipelineSettings(executor="serial", device="cpu", stall_timeout=60),
    )


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A Ray cluster of this machine for all tests of a process: starting one each would take most of their time."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # as in a cluster of `launch`; by default they yield to all others
        for attempt in range(_ATTEMPTS):
            try:
                ray.init(
                    address="local",
                    num_cpus=8,
                    object_store_memory=256 << 20,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
                break
            except Exception as error:  # Ray raises nothing more special
                # It gives its processes 30 seconds, which a busy machine may not have for them (workers/private.py).
                if "timed out during startup" not in str(error) or attempt == _ATTEMPTS - 1:
                    raise
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def blank_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and analyses lay out their pictures but write blank ones, which takes a tenth of the time: what pictures
    look like is shown by the tests marked ``pictures``."""
    if request.node.get_closest_marker("pictures") is None:
        monkeypatch.setattr("launch.output.pictures.write", write_blank)


@pytest.fixture(autouse=True)
def commands_end() -> Iterator[None]:
    """A command that outlives its test, which failed then, would slow all others down."""
    yield
    end_all()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Threads per process are part of a run's settings; tests start from the default."""
    torch.set_num_threads(1)


def make_run(settings: Settings, *, stages: int | None = None) -> tuple[RunSpec, Dataset]:
    """A run's spec and data, on CPU devices."""
    if stages is not None:
        settings = replace(settings, pipeline=replace(settings.pipeline, stages=stages))
    dataset = build.open_data(settings)
    return build_run(settings, Devices("cpu", 2), dataset=dataset), dataset
