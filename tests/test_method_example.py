"""The method, the net and the data set of docs/extending.md: a person who copies them has something that works."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.config import settings as settings_module
from pipeline.config.settings import DataSettings, PipelineSettings, ReadoutSettings, Settings, TrainSettings
from pipeline.data.registry import DATASETS
from pipeline.kind import Kind
from pipeline.methods import METHODS
from pipeline.nets import NETS, MlpSettings
from pipeline.runtime.serial import train_serial
from tests.conftest import make_run
from tests.test_equality import assert_same, through_threads

GUIDE = Path(__file__).parent.parent / "docs" / "extending.md"


def printed(registry: str) -> str:
    """The guide's block of Python that registers something there."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    (code,) = [block for block in blocks if f"{registry}.register" in block]
    return code


@contextmanager
def imported(code: str, name: str, folder: Path) -> Iterator[ModuleType]:
    """Code as a module of its own, for the length of the block."""
    file = folder / f"{name}.py"
    file.write_text(code)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.fixture(scope="module")
def method(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The guide's method, registered for as long as the tests of this file take."""
    with imported(printed("METHODS"), "centres", tmp_path_factory.mktemp("method")) as module:
        yield module
    METHODS.forget("centres")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The guide's net, registered as long."""
    with imported(printed("NETS"), "tanh_net", tmp_path_factory.mktemp("net")) as module:
        yield module
    NETS.forget("tanh")


@pytest.fixture(scope="module")
def settings(method: ModuleType) -> Settings:
    return Settings(
        data=DataSettings(data="digits"),
        net=MlpSettings(width=32, depth=3),
        method=method.CentreSettings(),
        train=TrainSettings(epochs=4, batch_size=32, keep="accuracy"),
        readout=ReadoutSettings(mode="none"),
        pipeline=PipelineSettings(executor="serial", device="cpu"),
    )


def test_the_method_is_under_forty_lines() -> None:
    assert len([line for line in printed("METHODS").splitlines() if line.strip()]) < 40


def test_the_method_learns_and_gives_the_serial_bits_in_three_stages(settings: Settings) -> None:
    serial = train_serial(*make_run(settings))
    assert_same(through_threads(settings, 3), serial)
    tested = serial.history.layers(Kind.TEST, 0)
    assert tested is not None
    assert min(layer.accuracy or 0 for layer in tested) > 0.5


def test_the_methods_settings_are_saved_and_read_again(settings: Settings) -> None:
    saved = settings_module.to_dict(settings)
    assert saved["method"] == {"kind": "centres", "centre_margin": 1.0}
    assert settings_module.from_dict(saved, source="here") == settings


def test_the_net_learns_and_gives_the_serial_bits_in_three_stages(net: ModuleType) -> None:
    settings = Settings(
        data=DataSettings(data="digits"),
        net=net.TanhSettings(width=32),
        train=TrainSettings(epochs=4, batch_size=32),
        readout=ReadoutSettings(mode="online", readout_lr="lr"),
        pipeline=PipelineSettings(executor="serial", device="cpu"),
    )
    serial = train_serial(*make_run(settings))
    assert_same(through_threads(settings, 3), serial)
    tested = serial.history.layers(Kind.TEST, 0)
    assert tested is not None
    assert min(layer.accuracy or 0 for layer in tested) > 0.5
    assert settings_module.from_dict(settings_module.to_dict(settings), source="here") == settings


def test_the_data_set_is_learned_and_gives_the_serial_bits_in_three_stages(tmp_path: Path) -> None:
    with imported(printed("DATASETS"), "stripes_of_the_guide", tmp_path):
        settings = Settings(
            data=DataSettings(data="stripes", data_dir=str(tmp_path / "data")),
            net=MlpSettings(width=32, depth=3),
            train=TrainSettings(epochs=4, batch_size=32),
            readout=ReadoutSettings(mode="online", readout_lr="lr"),
            pipeline=PipelineSettings(executor="serial", device="cpu"),
        )
        try:
            serial = train_serial(*make_run(settings))
            assert_same(through_threads(settings, 3), serial)
        finally:
            del DATASETS["stripes"]
    tested = serial.history.layers(Kind.TEST, 0)
    assert tested is not None
    assert min(layer.accuracy or 0 for layer in tested) > 0.9
