"""The method of pipeline/methods/README.md: a person who copies it has something that works."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.config import settings as settings_module
from pipeline.config.settings import DataSettings, HeadSettings, PipelineSettings, Settings, TrainSettings
from pipeline.methods import METHODS
from pipeline.nets import MlpSettings
from pipeline.runtime.serial import train_serial
from pipeline.transport.message import Kind
from tests.conftest import make_run
from tests.test_equality import assert_same, through_threads

GUIDE = Path(__file__).parent.parent / "pipeline" / "rules" / "README.md"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The guide's code as a module of its own, registered for as long as the tests of this file take."""
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    file = tmp_path_factory.mktemp("method") / "centres.py"
    file.write_text(code)
    spec = importlib.util.spec_from_file_location("centres", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["centres"] = module
    spec.loader.exec_module(module)
    yield module
    METHODS.forget("centres")
    del sys.modules["centres"]


@pytest.fixture(scope="module")
def settings(example: ModuleType) -> Settings:
    return Settings(
        data=DataSettings(data="digits"),
        net=MlpSettings(width=32, depth=3),
        method=example.CentreSettings(),
        train=TrainSettings(epochs=4, batch_size=32, keep="accuracy"),
        head=HeadSettings(mode="none"),
        pipeline=PipelineSettings(executor="serial", device="cpu"),
    )


def test_it_is_under_forty_lines() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) < 40


def test_it_learns_and_gives_the_serial_bits_in_three_stages(settings: Settings) -> None:
    serial = train_serial(*make_run(settings))
    assert_same(through_threads(settings, 3), serial)
    tested = serial.history.layers(Kind.TEST, 0)
    assert tested is not None
    assert min(layer.accuracy or 0 for layer in tested) > 0.5


def test_its_settings_are_saved_and_read_again(settings: Settings) -> None:
    saved = settings_module.to_dict(settings)
    assert saved["method"] == {"kind": "centres", "centre_margin": 1.0}
    assert settings_module.from_dict(saved, source="here") == settings
