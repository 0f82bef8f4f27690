"""Flags that are taken off the arguments before all others are read, as they decide what those can be."""

from __future__ import annotations

from pipeline.errors import UserError


def take_options(arguments: list[str], flag: str, wants: str) -> tuple[list[str], list[str]]:
    """Takes a flag off the arguments wherever it stands. Returns its values, and the arguments that are left.

    Raises:
        UserError: nothing follows it; ``wants`` says what should.
    """
    values: list[str] = []
    rest: list[str] = []
    given = iter(arguments)
    for argument in given:
        if argument == flag:
            value = next(given, None)
            if value is None:
                raise UserError(f"{flag} needs {wants}.")
            values.append(value)
        elif argument.startswith(f"{flag}="):
            values.append(argument.removeprefix(f"{flag}="))
        else:
            rest.append(argument)
    return values, rest


def take_series(arguments: list[str], flag: str) -> tuple[list[str] | None, list[str]]:
    """As ``take_options``, of a flag that takes all that follows it up to the next flag. None: it is not given."""
    values: list[str] = []
    rest: list[str] = []
    given = takes = False
    for argument in arguments:
        if argument == flag or argument.startswith(f"{flag}="):
            given = takes = True
            values += [argument.removeprefix(f"{flag}=")] if argument != flag else []
        else:
            takes = takes and not argument.startswith("-")
            (values if takes else rest).append(argument)
    return values if given else None, rest
