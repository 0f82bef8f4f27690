"""From the names of settings, which the library's sentences have in backquotes, to the flags that set them.

``pipeline`` and ``workers`` are used from Python too, so their errors and help texts name settings: "`batch_size` 1: …"
(``pipeline.errors``). Who typed a command reads "--batch-size 1: …" instead, and here the one becomes the other.

Nothing is imported here that takes time before there is a name to look up.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from typing import Any

from launch.command_line.arguments import EvalArguments, PrepareArguments
from launch.command_line.flags import setting_paths

_NAMED = re.compile(r"`([^\W\d]\w*(?:\.[^\W\d]\w*)*)`")


def as_flags(text: str) -> str:
    """A sentence of the library, with flags in place of the settings that it names.

    A setting goes by its name, or by its path among a run's settings: `lr` and `train.lr` both are --lr. What else
    stands in backquotes stays as it is, and so does a name to which plug-ins give different flags; its path, such as
    `method.scale`, says which is meant.
    """
    if not _NAMED.search(text):
        return text
    from pipeline.methods import METHODS  # noqa: PLC0415
    from pipeline.nets import NETS  # noqa: PLC0415

    flags = _flags_by_name(tuple(NETS), tuple(METHODS))
    return _NAMED.sub(lambda found: flags.get(found[1], found[0]), text)


@functools.cache
def _flags_by_name(nets: tuple[type[Any], ...], methods: tuple[type[Any], ...]) -> dict[str, str]:
    """The flag of each setting, by the setting's name and by its path.

    Args:
        nets, methods: settings of every kind that is registered, those of plug-ins as well.
    """
    from pipeline.config.settings import Settings  # noqa: PLC0415

    groups = [(Settings, ()), *((net, ("net",)) for net in nets), *((method, ("method",)) for method in methods)]
    # The library prepares and evaluates for these commands, whose arguments are no settings of a run.
    commands = [(PrepareArguments, ()), (EvalArguments, ())]
    known: dict[str, set[str]] = defaultdict(set)
    for kind, above in (*groups, *commands):
        for flag, path in setting_paths(kind, *above):
            for name in (path[-1], ".".join(path)):
                known[name].add(f"--{flag}")
    return {name: flags.pop() for name, flags in known.items() if len(flags) == 1}
