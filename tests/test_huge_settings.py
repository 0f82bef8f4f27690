"""A number that no machine can take is one sentence, for every integer setting of a run, of all nets and methods."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_args, get_type_hints

import pytest

from launch.cli import main
from launch.presets import PRESETS
from pipeline.config import checks
from pipeline.config.settings import Settings
from pipeline.errors import UserError
from pipeline.methods import METHODS
from pipeline.nets import NETS
from pipeline.nets.sizes import without_values

_HUGE = (10**30, -(10**30), 10**5000, 2**63)
_SHAPE = (1, 32, 32)

Path = tuple[str, ...]


def integers(kind: Any, *above: str) -> Iterator[Path]:
    """Where integers stand in a dataclass of settings and in those that it holds; tuples of them as well."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        default = getattr(kind(), field.name)
        if is_dataclass(default) and field.name not in ("net", "method"):
            yield from integers(type(default), *above, field.name)
        elif int in _kinds(hints[field.name]):
            yield *above, field.name


def _kinds(hint: Any) -> Iterator[Any]:
    yield hint
    for part in get_args(hint):
        yield from _kinds(part)


def put(settings: Any, path: Path, value: Any) -> Any:
    """Settings with one of them changed."""
    name, *rest = path
    old = getattr(settings, name)
    return replace(settings, **{name: put(old, tuple(rest), value) if rest else value})


def where(settings: Settings, path: Path, value: int) -> Settings:
    old: Any = settings
    for name in path:
        old = getattr(old, name)
    return put(settings, path, (value,) if isinstance(old, tuple) else value)


def every() -> Iterator[Any]:
    """Each integer setting with settings that hold it."""
    whole = PRESETS["cff-vit"].settings
    for path in integers(Settings):
        yield pytest.param(whole, path, id=".".join(path))
    for net in NETS:
        for path in integers(net):
            yield pytest.param(replace(whole, net=net()), ("net", *path), id=f"{net.kind}.{'.'.join(path)}")
    for method in METHODS:
        for path in integers(method):
            yield pytest.param(replace(whole, method=method()), ("method", *path), id=f"{method.kind}.{'.'.join(path)}")


@pytest.mark.parametrize(("settings", "path"), list(every()))
@pytest.mark.parametrize("value", _HUGE, ids=["1e30", "-1e30", "5000 digits", "2**63"])
def test_a_huge_number_is_refused_by_name(settings: Settings, path: Path, value: int) -> None:
    """Symptom: OverflowErrors and RuntimeErrors with their tracebacks, minutes of counting layers, a full memory."""
    with pytest.raises(UserError) as refusal:
        checks.check(where(settings, path, value))
    said = str(refusal.value)
    assert f"`{path[-1]}`" in said
    assert len(said) < 300 and "\n" not in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--dim", str(10**30)], "--dim 1000000000000000000000000000000: is above 2,147,483,647"),
        (["--dim", str(10**9)], "--dim 1000000000: must be at least 1 and at most 65,536"),
        (["--depth", str(10**9)], "--depth 1000000000: a net has at most 4,096 layers"),
        (["--threads", str(2**31)], "--threads 2147483648: is above 2,147,483,647"),
        (["--threads", str(2**31 - 1)], "--threads 2147483647: must be a number of at least 1 and at most 1,024"),
        (["--queue-depth", "2000000000"], "at most 1,024"),
        (["--readout-epochs", "2000000000"], "at most 1,000,000"),
        (["--crop-padding", "9"], "--crop-padding 9: digits has images of 8×8 pixels. Give at most --crop-padding 8"),
        (["--randaugment-ops", "2000000000"], "at most 100"),
        (["--memory-budget", "1e300"], "--memory-budget 1e+300: must be a number of at least 0 and at most"),
        (["--stall-timeout", "1e300"], "at most 10,000,000"),
        (["--stages", "2000000000"], "--stages 2000000000: this net has 4 layers"),
        (["--partition", "2000000000", "1"], "this net has 4"),
        (["--epochs", "9" * 4000], "--epochs 99999999…99999999 (4,000 digits): is above"),
    ],
)
def test_a_huge_number_typed_is_one_sentence(arguments: list[str], says: str, capsys: Any) -> None:
    assert main(["cff-vit", "--executor", "threads", "--device", "cpu", "--dry-run", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert len(said.strip().splitlines()) == 1
    assert says in said


def test_a_huge_image_size_and_number_of_steps_are_one_sentence(
    tmp_path: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["prepare", str(tmp_path), "--image-size", str(10**30)]) == 2
    assert "at least 1 and at most 4,096" in capsys.readouterr().err
    monkeypatch.setenv("LOCALPIPE_MAX_STEPS", "9" * 5000)
    assert main(["cff-vit", "--dry-run"]) == 2
    assert "must be a number of training steps" in capsys.readouterr().err


def widest(net: Any) -> Iterator[Any]:
    for path in integers(net):
        for value in (65_536, 4096, 1024):
            yield path, value


@pytest.mark.parametrize("kind", [net.kind for net in NETS])
def test_the_largest_sizes_that_are_allowed_are_laid_out_without_memory(kind: str) -> None:
    for path, value in widest(NETS[kind]):
        if path[-1] == "depth":
            continue  # thousands of layers take seconds
        given: Any = (value,) if isinstance(getattr(NETS[kind](), path[-1]), tuple) else value
        try:
            net = put(NETS[kind](), path, given).resolve(_SHAPE)
        except UserError:
            continue
        assert without_values(net, _SHAPE)
