"""Registries of settings: each member under a name of its own, saved and loaded without loss, mistakes named."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import pytest

from pipeline.config import settings as all_settings
from pipeline.config.settings import ReadoutSettings, Settings
from pipeline.errors import UserError
from pipeline.methods import METHODS, CflSettings, MethodConfig
from pipeline.methods.embeddings import EmbeddingSettings
from pipeline.nets import NETS, ConvSettings, MlpSettings, NetConfig, VitSettings
from pipeline.registry import Registered, Registry

# ---------------------------------------------------------------------------------------------------------------------
# A registry


class Shape(Registered):
    pass


@dataclass(frozen=True, kw_only=True)
class Circle(Shape):
    kind: ClassVar[str] = "circle"
    radius: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Polygon(Shape):
    kind: ClassVar[str] = "polygon"
    sides: tuple[int, ...] = (3, 4, 5)
    colour: Literal["red", "blue"] = "red"
    border: Circle = Circle()


@pytest.fixture
def shapes() -> Registry[Shape]:
    registry: Registry[Shape] = Registry("shape")
    registry.register(Polygon)
    registry.register(Circle)
    return registry


def test_registering_a_class_gives_it_back(shapes: Registry[Shape]) -> None:
    """As a decorator must."""
    assert shapes.register(Circle) is Circle
    assert list(shapes) == [Polygon, Circle], "and twice is once"


def test_two_classes_of_one_name_are_refused_naming_both(shapes: Registry[Shape]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Disc(Shape):
        kind: ClassVar[str] = "circle"

    with pytest.raises(ValueError, match="two shapes are called 'circle': Circle and Disc"):
        shapes.register(Disc)
    assert list(shapes) == [Polygon, Circle]


def test_name_can_be_given_anew_once_it_is_forgotten(shapes: Registry[Shape]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Disc(Shape):
        kind: ClassVar[str] = "circle"

    shapes.forget("circle")
    assert "circle" not in shapes
    assert shapes.register(Disc) is Disc
    assert shapes.load({"kind": "circle"}) == Disc()


@pytest.mark.parametrize("kind", ["circel", "", None, 3, ["circle"], {"circle": 1}])
def test_unknown_kind_is_named_with_those_that_exist(shapes: Registry[Shape], kind: object) -> None:
    with pytest.raises(ValueError, match="no shape is called") as refusal:
        shapes.load({"kind": kind, "radius": 2.0})
    assert f"{kind!r}" in str(refusal.value)
    assert str(refusal.value).endswith("There are: circle, polygon")
    assert kind not in shapes


def test_table_without_a_kind_is_refused(shapes: Registry[Shape]) -> None:
    with pytest.raises(ValueError, match="There are: circle, polygon"):
        shapes.load({"radius": 2.0})


@pytest.mark.parametrize("values", ["circle", 3, None, [1]])
def test_what_is_no_table_is_refused(shapes: Registry[Shape], values: object) -> None:
    with pytest.raises(ValueError, match="a shape is a table of settings") as refusal:
        shapes.load(values)
    assert repr(values) in str(refusal.value)


def test_value_that_does_not_fit_is_refused_by_its_full_name(shapes: Registry[Shape]) -> None:
    with pytest.raises(ValueError, match="sides") as refusal:
        shapes.load({"kind": "polygon", "sides": [3, "many"], "colour": "green", "border": {"radius": "wide"}})
    assert str(refusal.value) == (
        "sides.1 should be a valid integer, not 'many'; colour should be 'red' or 'blue', not 'green'; "
        "border.radius should be a valid number, not 'wide'"
    )


def test_member_is_saved_under_its_kind_as_plain_json_values(shapes: Registry[Shape]) -> None:
    dumped = shapes.dump(Polygon(sides=(6,), border=Circle(radius=0.5)))
    assert dumped == {"kind": "polygon", "sides": [6], "colour": "red", "border": {"radius": 0.5}}


def test_member_loads_as_itself(shapes: Registry[Shape]) -> None:
    circle = Circle(radius=3.0)
    assert shapes.load(circle) is circle


def test_loading_leaves_what_it_loads_from_alone(shapes: Registry[Shape]) -> None:
    values = {"kind": "circle", "radius": 2.0}
    shapes.load(values)
    assert values == {"kind": "circle", "radius": 2.0}


def test_name_that_no_setting_has_is_refused_also_inside_another_one(shapes: Registry[Shape]) -> None:
    with pytest.raises(ValueError, match="known") as refusal:
        shapes.load({"kind": "polygon", "side": 3, "border": {"radios": 1.0}})
    assert str(refusal.value) == "border.radios is not known; side is not known"


# ---------------------------------------------------------------------------------------------------------------------
# Every net and every method


def values_of(hint: Any) -> Iterator[Any]:
    """Some values that a setting of this type may have."""
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    elif get_origin(hint) is tuple:
        first, second = itertools.islice(values_of(get_args(hint)[0]), 2)
        yield from ((first, second), (first, second, first))
    elif dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        yield changed_everywhere(hint())
    elif get_args(hint):  # a union
        for part in get_args(hint):
            yield from values_of(part)
    else:
        yield from {int: (3, 5), float: (0.25, 0.75), bool: (False, True)}[hint]


def changed_everywhere(member: Any) -> Any:
    """The settings with each one changed from what it is."""
    hints = get_type_hints(type(member))
    changes = {
        field.name: next(value for value in values_of(hints[field.name]) if value != getattr(member, field.name))
        for field in dataclasses.fields(member)
    }
    return replace(member, **changes)


MEMBERS: list[tuple[Registry[Any], Any]] = [(registry, member) for registry in (NETS, METHODS) for member in registry]


@pytest.mark.parametrize(("registry", "member"), MEMBERS, ids=[member.kind for _, member in MEMBERS])
def test_every_net_and_method_survives_saving_with_each_setting_changed(
    registry: Registry[Any], member: type[Any]
) -> None:
    chosen = changed_everywhere(member())
    saved = json.loads(json.dumps(registry.dump(chosen)))
    again = registry.load(saved)
    assert type(again) is member
    assert again == chosen
    assert hash(again) == hash(chosen), "tuples come back as tuples"
    assert all(saved[name] != value for name, value in registry.dump(member()).items() if name != "kind")


def test_nets_and_methods_of_the_papers_are_there() -> None:
    assert {"vit", "mlp", "conv", "vgg", "resnet", "mixer"} <= {net.kind for net in NETS}
    assert {"cff", "cfl", "dcl"} <= {method.kind for method in METHODS}


@pytest.mark.parametrize("net", list(NETS), ids=[net.kind for net in NETS])
@pytest.mark.parametrize("method", list(METHODS), ids=[method.kind for method in METHODS])
def test_whole_run_survives_saving_with_any_net_and_method(net: type[NetConfig], method: type[MethodConfig]) -> None:
    chosen = Settings(net=changed_everywhere(net()), method=changed_everywhere(method()))
    saved = json.loads(json.dumps(all_settings.to_dict(chosen)))
    assert all_settings.from_dict(saved, source="here") == chosen


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes in a saved configuration


def refused(values: dict[str, Any]) -> str:
    """What the refusal says."""
    with pytest.raises(UserError) as refusal:
        all_settings.from_dict(values, source="config.json")
    assert str(refusal.value).startswith("config.json: ")
    return str(refusal.value)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"net": {"kind": "vit", "dimm": 8}}, "net.dimm"),
        ({"net": {"kind": "mlp", "heads": 8}}, "net.heads"),  # another net's
        ({"method": {"kind": "cfl", "margin_first": 0.4}}, "method.margin_first"),  # another method's
        ({"method": {"kind": "cfl", "embedding": {"embedding_widht": 8}}}, "method.embedding.embedding_widht"),
        ({"method": {"kind": "dcl", "embedding": {"lag": 1}}, "seed": 3}, "method.embedding.lag, seed"),
    ],
)
def test_unknown_setting_is_refused_by_its_full_name(values: dict[str, Any], name: str) -> None:
    assert f"unknown settings {name}. " in refused(values)


@pytest.mark.parametrize("kind", ["vitt", ["vit"], 3])
def test_unknown_net_is_refused_for_its_kind_and_not_for_its_settings(kind: object) -> None:
    """Symptom: of a net that is not known every setting was called unknown, and the net was not named."""
    said = refused({"net": {"kind": kind, "dim": 8, "layers": 3}})
    assert f"no net is called {kind!r}" in said
    assert "There are: " in said and "conv, mixer, mlp" in said
    assert "net.dim" not in said


def test_unknown_method_is_refused_for_its_kind_and_not_for_its_settings() -> None:
    said = refused({"method": {"kind": "cfll", "embedding": {"embedding_lag": 8}}})
    assert "no method is called 'cfll'" in said
    assert "cff, cfl, dcl" in said


def test_value_that_does_not_fit_is_refused_by_its_name() -> None:
    said = refused({"method": {"kind": "cfl", "embedding": {"embedding_mode": "first"}}, "train": {"epochs": "many"}})
    assert "method.embedding.embedding_mode should be 'static', " in said
    assert "train.epochs should be a valid integer, not 'many'" in said


def test_names_of_earlier_versions_are_read() -> None:
    """Runs from before a renaming can still be repeated, evaluated and exported."""
    earlier = {"head": {"mode": "online", "head_layers": "last", "head_lr": "lr"}, "pipeline": {"wire": "bf16"}}
    loaded = all_settings.from_dict(earlier, source="here")
    assert loaded.readout == ReadoutSettings(mode="online", readout_layers="last", readout_lr="lr")
    assert loaded.pipeline.transfer_dtype == "bf16"
    assert all_settings.from_dict(all_settings.to_dict(loaded), source="here") == loaded


def test_settings_that_a_file_leaves_out_have_their_defaults() -> None:
    loaded = all_settings.from_dict(
        {"net": {"kind": "conv"}, "method": {"kind": "cfl", "embedding": {"embedding_lag": 0}}}, source="here"
    )
    assert loaded == Settings(net=ConvSettings(), method=CflSettings(embedding=EmbeddingSettings(embedding_lag=0)))


def test_net_and_method_left_out_are_those_of_a_run_without_settings() -> None:
    assert all_settings.from_dict({}, source="here") == Settings()
    assert Settings().net == VitSettings() != MlpSettings()
