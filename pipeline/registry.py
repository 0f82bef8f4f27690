"""Settings that a run chooses one kind of, each kind under a name: nets, learning methods.

A member is a class; registering it is all that the command line and saved settings need to know it by.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from typing import Any, ClassVar, Generic, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

STRICT = ConfigDict(extra="forbid")
"""For ``__pydantic_config__`` of settings that are saved: a name that they do not know is refused. Dataclasses inside
them follow it."""

_PLAIN_TYPES = ("int", "float", "str", "bool")
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")  # pydantic's words for it

T = TypeVar("T", bound="Registered")
M = TypeVar("M", bound="Registered")


class Registered:
    """What a registered class has."""

    kind: ClassVar[str]
    """The name it is saved under."""
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


class MisfitError(ValueError):
    """Settings that do not fit a member, with what pydantic found."""

    def __init__(self, found: ValidationError) -> None:
        super().__init__(found)
        self.found = found

    def __str__(self) -> str:
        return "; ".join(problems(self.found))


class Registry(Generic[T]):
    """The members of a registry by their ``kind``.

    Args:
        what: what a member is, for error messages: "net".
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._members: dict[str, type[T]] = {}

    def register(self, member: type[M]) -> type[M]:
        """Adds a member, a dataclass; to be used as a decorator. Raises ValueError where its name is taken."""
        kind = member.kind
        known = self._members.setdefault(kind, cast("type[T]", member))
        if known is not member:
            raise ValueError(f"two {self.what}s are called {kind!r}: {known.__name__} and {member.__name__}")
        return member

    def forget(self, kind: str) -> None:
        """Removes a member, such as one that a test or a notebook wants to define again."""
        del self._members[kind]

    def __iter__(self) -> Iterator[type[T]]:
        return iter(self._members.values())

    def __contains__(self, kind: object) -> bool:
        return isinstance(kind, str) and kind in self._members

    def __getitem__(self, kind: object) -> type[T]:
        """The member of this kind. Raises ValueError naming those that there are."""
        if not isinstance(kind, str) or kind not in self._members:
            raise ValueError(
                f"no {self.what} is called {reprlib.repr(kind)}. There are: {', '.join(sorted(self._members))}"
            )
        return self._members[kind]

    def load(self, values: Any) -> T:
        """A member from what ``dump`` gave, or itself. Raises ValueError, which ``problems`` tells of."""
        if isinstance(values, tuple(self._members.values())):
            return cast("T", values)
        if not isinstance(values, dict):
            raise ValueError(f"a {self.what} is a table of settings, not {reprlib.repr(values)}")
        member = self[values.get("kind")]
        rest = {name: value for name, value in values.items() if name != "kind"}
        try:
            loaded: T = TypeAdapter(member).validate_python(rest)
        except ValidationError as error:
            raise MisfitError(error) from error
        return loaded

    def dump(self, member: T) -> dict[str, Any]:
        """Plain JSON values."""
        return {"kind": member.kind, **TypeAdapter(type(member)).dump_python(member, mode="json")}


def unknown_names(error: ValidationError) -> list[str]:
    """Of what pydantic found, the names that no setting has: "train.nesterov"."""
    return [name for name, one in _found(error) if one["type"] in _UNKNOWN]


def problems(error: ValidationError) -> list[str]:
    """What pydantic found, a clause for each setting: "train.epochs should be a valid integer, not 'many'"."""
    wanted: dict[str, list[str]] = {}
    given: dict[str, str] = {}
    for name, one in _found(error):
        cause = one.get("ctx", {}).get("error")
        if cause is not None:
            wanted[f"{name}: {cause}"] = []
        elif one["type"] == "missing":
            wanted[f"{name} is missing"] = []
        elif one["type"] in _UNKNOWN:
            wanted[f"{name} is not known"] = []
        else:
            wanted.setdefault(name, []).append(_wanted(one["msg"]))
            given[name] = reprlib.repr(one["input"])
    return [
        f"{name} should be {' or '.join(each)}, not {given[name]}" if each else name for name, each in wanted.items()
    ]


def _found(error: ValidationError, inside: str = "") -> Iterator[tuple[str, ErrorDetails]]:
    """Each thing that pydantic found, with the full name of its setting, also in members of registries."""
    for one in error.errors():
        name = inside + ".".join(str(part) for part in one["loc"] if not _is_choice(part))
        cause = one.get("ctx", {}).get("error")
        if isinstance(cause, MisfitError):
            yield from _found(cause.found, f"{name}.")
        else:
            yield name, one


def _is_choice(part: int | str) -> bool:
    """Whether a part of pydantic's location is a member of a union, such as int or literal['auto'], and no name."""
    return isinstance(part, str) and (part in _PLAIN_TYPES or not part.isidentifier())


def _wanted(message: str) -> str:
    """Pydantic's message without how it tried, and with a file's words for what Python calls otherwise."""
    plain = message.partition(", unable to parse")[0].removeprefix("Input should be ")
    if plain.startswith("a dictionary or an instance of"):
        return "a table of settings"
    return "a list" if plain == "a valid tuple" else plain
