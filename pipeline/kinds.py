"""Families of settings that a run chooses one member of, each member under a name: nets, learning methods.

A member is a class; registering it is all that the command line and saved settings need to know it by.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Generic, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T", bound="Named")
M = TypeVar("M", bound="Named")


class Named:
    """What a member of a family has."""

    kind: ClassVar[str]
    """The name it is saved under."""


class Family(Generic[T]):
    """The members of a family by their ``kind``.

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

    def template(self, kind: str) -> dict[str, Any]:
        """The settings that a member of this kind can have, at their defaults."""
        return self.dump(self._members[kind]())

    def load(self, values: Any) -> T:
        """A member from what ``dump`` gave, or itself. Raises ValueError, which pydantic makes its own."""
        if isinstance(values, tuple(self._members.values())):
            return cast("T", values)
        if not isinstance(values, dict):
            raise ValueError(f"a {self.what} is a table of settings, not {values!r}")
        kind: Any = values.get("kind")
        if kind not in self:
            raise ValueError(f"no {self.what} is called {kind!r}. There are: {', '.join(sorted(self._members))}")
        rest = {name: value for name, value in values.items() if name != "kind"}
        try:
            loaded: T = TypeAdapter(self._members[kind]).validate_python(rest)
        except ValidationError as error:
            raise ValueError(
                "; ".join(f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors())
            ) from error
        return loaded

    def dump(self, member: T) -> dict[str, Any]:
        """Plain JSON values."""
        return {"kind": member.kind, **TypeAdapter(type(member)).dump_python(member, mode="json")}
