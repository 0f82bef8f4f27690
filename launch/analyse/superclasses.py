"""`--superclasses FILE|NAME` and the super-class half of `launch eval`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from launch.output.console import say
from launch.output.tables import print_table
from pipeline import plain_json
from pipeline.analysis.superclasses import SuperAccuracy, SuperClasses, partition
from pipeline.data.class_groups import SUPERCLASSES
from pipeline.errors import UserError

_FORM = 'Give JSON, {"super-class": ["class", …], …}, or a line "super-class: class, class, …" for each.'


def read_superclasses(given: str, classes: Sequence[str]) -> SuperClasses:
    """Super-classes by name, or of a file: JSON, or lines of text.

    Args:
        given: what ``--superclasses`` was given.
        classes: of the run, in label order.

    Raises:
        UserError: neither a known name nor a file that can be read; what
            ``pipeline.analysis.superclasses.partition`` refuses.
    """
    source = f"--superclasses {given}"
    if given in SUPERCLASSES:
        return partition(SUPERCLASSES[given], classes, source=source)
    file = Path(given)
    if not file.is_file():
        close = difflib.get_close_matches(given, SUPERCLASSES, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise UserError(f"{source}: no such file, and no known name. {hint}Known: {', '.join(SUPERCLASSES)}. {_FORM}")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: cannot be read as text ({error}). {_FORM}") from error
    groups = _from_json(text, source) if text.lstrip().startswith(("{", "[")) else _from_lines(text, source)
    return partition(groups, classes, source=source)


def _from_json(text: str, source: str) -> dict[str, list[str]]:
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        _refuse_twice([name for name, _ in pairs], source)
        return dict(pairs)

    try:
        values = plain_json.parse(text, object_pairs_hook=once)
    except ValueError as error:
        raise UserError(f"{source}: not JSON ({error}). {_FORM}") from error
    fits = isinstance(values, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in values.values()
    )
    if not fits:
        raise UserError(f"{source}: not a list of class names for each super-class. {_FORM}")
    return dict(values)


def _from_lines(text: str, source: str) -> dict[str, list[str]]:
    pairs = []
    for number, whole in enumerate(text.splitlines(), start=1):
        line = whole.split("#", 1)[0].strip()
        if not line:
            continue
        name, colon, names = line.partition(":")
        if not colon or not name.strip():
            raise UserError(f"{source}: line {number}, {line!r}, names no super-class. {_FORM}")
        pairs.append((name.strip(), [part.strip() for part in names.split(",") if part.strip()]))
    _refuse_twice([name for name, _ in pairs], source)
    return dict(pairs)


def _refuse_twice(names: Sequence[str], source: str) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{source}: super-class {twice!r} is there twice. Name all of its classes together.")


def print_superclasses(
    console: Console, given: str, superclasses: SuperClasses, accuracies: Sequence[SuperAccuracy]
) -> None:
    """A row per layer: accuracy on super-classes in each of the three ways."""
    members = [len(group) for group in superclasses.groups]
    sizes = f"{min(members)} to {max(members)} classes" if min(members) < max(members) else f"{members[0]} classes"
    say(console, f"accuracy on {len(members)} super-classes of {sizes} ({given}), which the run never learned:")
    rows = [
        [str(row.layer + 1), *(f"{share:.2%}" for share in (row.naive, row.mean, row.super, row.classes))]
        for row in accuracies
    ]
    print_table(console, ("layer", "naive", "mean", "super", "of classes"), rows)
    say(
        console,
        "naive: super-class of the predicted class; mean: most similar mean of label embeddings; "
        "super: super-class of the most similar embedding.",
    )
