"""The flags that a dataclass of settings gives a command, as facts: name, values, default, text, group.

tyro makes the same flags out of the same dataclass when a command line is parsed; here they are listed, so that the
help can show the few that matter first. A test holds the two lists to each other.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag or positional argument.

    Attributes:
        name: without dashes, as typed: "batch-size".
        values: what may follow it: "N", "auto|cpu|cuda", "FOLDER"; "" for a switch.
        default: as a person would type it; None where there is none or the text says it.
        text: what it does, one paragraph.
        group: the heading that it stands under in the whole list; "" for the command's own.
        positional: whether it is given without a name.
        switch: whether it takes no value; "pair" where --no-NAME turns it off.
    """

    name: str
    values: str
    default: str | None
    text: str
    group: str
    positional: bool = False
    switch: Literal["no", "yes", "pair"] = "no"

    @property
    def usage(self) -> str:
        """As it stands in front of its text: "--batch-size N"."""
        if self.positional:
            return self.values
        name = f"--{self.name}" if self.switch != "pair" else f"--{self.name}, --no-{self.name}"
        return f"{name} {self.values}".rstrip()


def flags_of(settings: Any, group: str = "") -> Iterator[Flag]:
    """The flags of a dataclass and of those that it holds, in their order, the command's own first.

    Args:
        settings: an instance, whose values are the defaults, or the class itself.
        group: heading of the flags that stand in no nested dataclass. A nested dataclass is a group of its own; the
            first sentence of its docstring is the heading.
    """
    kind = settings if isinstance(settings, type) else type(settings)
    hints, texts = get_type_hints(kind, include_extras=True), field_texts(kind)
    nested = []
    for field in dataclasses.fields(kind):
        hint, value = hints[field.name], _default(settings, field)
        if field.metadata.get("flag", "") is None:
            continue
        if dataclasses.is_dataclass(value):
            nested.append(value)
            continue
        marks = _marks(hint)
        name = _name(field, marks)
        positional = tyro.conf.Positional in marks
        values = field.metadata.get("metavar") or _conf(marks, "metavar") or _values(hint) or ""
        text = texts.get(field.name, "")
        yield Flag(
            name=name,
            values=values if values or not positional else name.upper(),
            default=None if "Default:" in text else _typed(value),
            text=text,
            group=group,
            positional=positional,
            switch=_switch(value, marks),
        )
    for value in nested:
        yield from flags_of(value, group=_heading(type(value)))


def setting_paths(settings: Any, *above: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The flags of a dataclass, as in ``flags_of``, each with where its value stands.

    Yields a flag's name, without dashes, and the names of the fields that lead to its value: ("batch-size", ("train",
    "batch_size")). Positional arguments, which have no name on a command line, are left out.

    Args:
        above: fields that lead to ``settings`` itself.
    """
    kind = settings if isinstance(settings, type) else type(settings)
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        value, marks = _default(settings, field), _marks(hints[field.name])
        if field.metadata.get("flag", "") is None or tyro.conf.Positional in marks:
            continue
        if dataclasses.is_dataclass(value):
            yield from setting_paths(value, *above, field.name)
        else:
            yield _name(field, marks), (*above, field.name)


def _marks(hint: Any) -> tuple[Any, ...]:
    """What a type is annotated with."""
    return get_args(hint)[1:] if get_origin(hint) is Annotated else ()


def _conf(marks: tuple[Any, ...], what: Literal["name", "metavar"]) -> str | None:
    """What tyro's own mark says of a flag's looks, if there is one."""
    said: str | None = next((getattr(mark, what) for mark in marks if hasattr(mark, "metavar")), None)
    return said


def _name(field: dataclasses.Field[Any], marks: tuple[Any, ...]) -> str:
    """A flag's name, without dashes in front."""
    name: str = field.metadata.get("flag") or _conf(marks, "name") or field.name
    return name.replace("_", "-")


def _default(settings: Any, field: dataclasses.Field[Any]) -> Any:
    if not isinstance(settings, type):
        return getattr(settings, field.name)
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _switch(value: Any, marks: tuple[Any, ...]) -> Literal["no", "yes", "pair"]:
    if not isinstance(value, bool):
        return "no"
    return "yes" if tyro.conf.FlagCreatePairsOff in marks else "pair"


@functools.cache
def field_texts(kind: type) -> dict[str, str]:
    """What stands below each field of a dataclass, base classes included, each as one paragraph."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef), "a dataclass is a class"
        for field, below in zip(definition.body, definition.body[1:], strict=False):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                texts[field.target.id] = " ".join(str(below.value.value).split())
    return texts


def _heading(kind: type) -> str:
    """The first sentence of a docstring, without its full stop."""
    paragraph = " ".join((inspect.getdoc(kind) or kind.__name__).split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".")


_KINDS: dict[Any, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH", bool: ""}


def _values(hint: Any) -> str | None:
    """What may be typed for a value of this type."""
    origin = get_origin(hint)
    if hint in _KINDS:
        return _KINDS[hint]
    if origin is Annotated:
        return _values(get_args(hint)[0])
    if origin is Literal:
        return "|".join(str(value) for value in get_args(hint))
    if origin in (tuple, list):
        return f"{_values(get_args(hint)[0])} …"
    if origin in (Union, types.UnionType):
        return "|".join(_values(part) or "" for part in get_args(hint) if part is not type(None))
    return None


def _typed(value: Any) -> str | None:
    """A default as a person would type it."""
    if value is None or value is dataclasses.MISSING:
        return None
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (tuple, list)):
        return " ".join(str(part) for part in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
