"""From what was typed to values: a command's flags, and a run's settings from preset, saved configuration and flags."""

from __future__ import annotations

import dataclasses
import difflib
import os
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeVar, get_type_hints

import tyro

from launch.command_line.arguments import Cluster, Detach
from launch.command_line.flags import Flag, field_texts, flags_of
from launch.command_line.help import EXIT_STATUSES, HELP, HELP_ALL, Page, print_page
from launch.command_line.options import take_options
from launch.command_line.setting_names import as_flags
from launch.command_line.sweep_flags import SWEEP_FLAGS
from launch.output.console import make_console
from launch.presets import PRESETS, Preset, load_plugins
from pipeline.config import settings as settings_module
from pipeline.config.settings import Settings
from pipeline.errors import UserError
from pipeline.nets import NETS
from pipeline.plugins import plugin_name

T = TypeVar("T")

Parse = Callable[[Settings, list[str]], T]

MARKERS = (tyro.conf.OmitArgPrefixes, tyro.conf.AvoidSubcommands)
"""How tyro reads every command line: a flag is called what its field is called, at whatever depth."""

REGISTRY = tyro.constructors.ConstructorRegistry()
"""How tyro reads the settings of ``pipeline``, which knows nothing of a command line."""


@REGISTRY.struct_rule
def _settings(info: tyro.constructors.StructTypeInfo) -> tyro.constructors.StructConstructorSpec | None:
    """A dataclass whose fields' metadata say how their flags look (``pipeline.config.settings``)."""
    if not dataclasses.is_dataclass(info.type) or not any(f.metadata for f in dataclasses.fields(info.type)):
        return None
    hints = get_type_hints(info.type, include_extras=True)
    given = info.default if isinstance(info.default, info.type) else info.type()
    fields = []
    for one in dataclasses.fields(info.type):
        looks = [tyro.conf.arg(name=one.metadata.get("flag"), metavar=one.metadata.get("metavar"))]
        if one.metadata.get("flag", "") is None:
            looks = [tyro.conf.Suppress]
        fields.append(
            tyro.constructors.StructFieldSpec(
                name=one.name,
                type=Annotated[hints[one.name], *looks] if one.metadata else hints[one.name],  # type: ignore[arg-type]
                default=getattr(given, one.name),
                helptext=as_flags(field_texts(info.type).get(one.name, "")),
            )
        )
    return tyro.constructors.StructConstructorSpec(instantiate=info.type, fields=tuple(fields))


MAX_STEPS = "LOCALPIPE_MAX_STEPS"
"""Variable of the environment that makes runs and benchmarks short, to see whether they work."""

_STEP_DIGITS, _SHOWN = 9, 40

FIRST = (
    *("data", "epochs", "batch-size", "lr", "seed", "stages", "device", "precision", "executor", "run-dir"),
    *("cluster", "config", "sweep", "seeds", "dry-run", "quiet", "verbose"),
)
"""Flags of a run that its short help shows."""

_CONFIG = Flag(
    name="config",
    values="FILE",
    default=None,
    text="Start from the config.json of a run folder in place of the preset; flags override it.",
    group="",
)


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """What `launch PRESET` takes."""

    run: Settings
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Check everything, print what would run, and start nothing."""
    cluster: Cluster = None
    """Train on the machines of a cluster.yaml that are up, and fetch the run folder."""
    detach: Detach = False
    """On a cluster: end when the run has been started. `launch attach` shows and fetches it."""
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(aliases=["-q"])] = False
    """-q: print the result and warnings alone."""
    verbose: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(aliases=["-v"])] = False
    """-v: print also where each worker is, and how long each part of the start took."""


def parse(
    kind: type[T],
    arguments: list[str],
    *,
    command: str,
    default: T | None = None,
    about: str = "",
    first: Collection[str] | None = None,
    more: Iterable[Flag] = (),
) -> T:
    """A command's values from its arguments. With --help or --help-all it prints the help and ends the program.

    Args:
        kind: a dataclass; its fields are the flags, its docstring the help unless ``about`` says more.
        command: as typed, with its name: "launch eval".
        default: values of flags that are not given.
        first: names of the flags that the short help shows; None shows all.
        more: flags that were taken off the arguments before.
    """
    if any(argument in (*HELP, HELP_ALL) for argument in arguments):
        known = flags_of(kind if default is None else default)
        flags = [*(replace(flag, text=as_flags(flag.text)) for flag in known), *more]
        positional = " ".join(flag.values for flag in flags if flag.positional)
        page = Page(
            usage=[" ".join(part for part in (command, positional, "[flags]") if part)],
            about=about or str(kind.__doc__),
            flags=flags,
            first=first,
            after=[EXIT_STATUSES],
        )
        print_page(make_console(), page, whole=first is None or HELP_ALL in arguments)
        sys.exit(0)
    if default is None:
        return tyro.cli(kind, args=arguments, prog=command, description="", config=MARKERS, registry=REGISTRY)
    return tyro.cli(
        kind, args=arguments, prog=command, description="", config=MARKERS, registry=REGISTRY, default=default
    )


def parse_words(words: list[str]) -> RunArguments:
    """As ``parse_run``, of all that follows `launch`: a preset, or --config, and flags."""
    return parse_run(None, words) if names_config(words[0]) else parse_run(words[0], words[1:])


def names_config(word: str) -> bool:
    """Whether a command begins with a configuration in place of a preset's name."""
    return word == "--config" or word.startswith("--config=")


def parse_run(name: str | None, arguments: list[str]) -> RunArguments:
    """What `launch PRESET` was given; without a name the saved configuration says which preset.

    Raises:
        UserError: a configuration that cannot be read, or that is another preset's.
    """
    preset, default, rest = preset_and_default(name, arguments)
    parsed = parse(
        RunArguments,
        rest,
        command=f"launch {default.preset}" if name is not None else "launch",
        default=RunArguments(run=default),
        about=f"{preset.title}.\n\n{preset.paper}",
        first=FIRST,
        more=[_CONFIG, _net_flag(), *SWEEP_FLAGS],
    )
    return replace(parsed, run=shortened(parsed.run))


def preset_and_default(name: str | None, arguments: list[str]) -> tuple[Preset, Settings, list[str]]:
    """The preset, the settings that flags start from, and the arguments without --config.

    Settings are the preset's for the --data that is given, or with --config the saved run's.

    Raises:
        UserError: as ``parse_run``.
    """
    configs, rest = take_options(arguments, "--config", "a file: the config.json of a run folder")
    nets, rest = take_options(rest, "--net", f"the kind of a net: {', '.join(_net_kinds())}")
    config = configs[-1] if configs else None
    if config is None:
        assert name is not None, "a run has a preset or a configuration"
        return PRESETS[name], _on_net(PRESETS[name].settings_for(peek(rest, "--data")), nets), rest
    saved = settings_module.load(Path(config))
    load_plugins()  # the run's are there now: their presets too
    if name is not None and saved.preset != name:
        raise UserError(
            f"--config {config}: is a run of {saved.preset}, not of {name}. Give it to its own preset: "
            f"launch {saved.preset} --config {config}"
        )
    if saved.preset not in PRESETS:
        raise UserError(f"--config {config}: {unknown(saved.preset, PRESETS, 'preset')}")
    return PRESETS[saved.preset], _on_net(replace(saved, run_dir=None), nets), rest


def _net_kinds() -> list[str]:
    """Those of plug-ins as well."""
    return sorted(net.kind for net in NETS)


def _net_flag() -> Flag:
    return Flag(
        name="net",
        values="|".join(_net_kinds()),
        default=None,
        text="Another kind of net in place of the preset's. Its flags take the place of those of the preset's net.",
        group="",
    )


def _on_net(settings: Settings, nets: list[str]) -> Settings:
    """The settings on a net of another kind, as it is unless flags say more; the last one that was named counts."""
    if not nets or nets[-1] == settings.net.kind:
        return settings
    if nets[-1] not in NETS:
        raise UserError(f"--net {nets[-1]}: there are {', '.join(_net_kinds())}.")
    return replace(settings, net=NETS[nets[-1]]())


def with_plugins(parsed: RunArguments, given: Iterable[str]) -> RunArguments:
    """The run, saved with the plug-ins that it was given beside those of its preset."""
    named = [plugin_name(name) for name in given]
    return replace(parsed, run=replace(parsed.run, plugins=tuple(dict.fromkeys((*parsed.run.plugins, *named)))))


def shortened(settings: Settings) -> Settings:
    """Settings with ``$LOCALPIPE_MAX_STEPS`` where --max-steps is not given. It only caps steps.

    Raises:
        UserError: the variable is no number of steps.
    """
    if settings.train.max_steps is not None:
        return settings
    return replace(settings, train=replace(settings.train, max_steps=most_steps()))


def most_steps() -> int | None:
    """The steps that ``$LOCALPIPE_MAX_STEPS`` leaves room for. Raises UserError as ``shortened``."""
    given = os.environ.get(MAX_STEPS)
    if not given:
        return None
    if not given.isdecimal() or len(given) > _STEP_DIGITS or int(given) < 1:
        raise UserError(
            f"{MAX_STEPS}={given[:_SHOWN]}: must be a number of training steps, at least 1, of at most {_STEP_DIGITS} "
            "digits. Or unset it."
        )
    return int(given)


def peek(arguments: list[str], flag: str) -> str | None:
    """The value of a flag that decides the defaults of others; it stays among the arguments."""
    for position, given in enumerate(arguments):
        if given == flag and position + 1 < len(arguments):
            return arguments[position + 1]
        if given.startswith(f"{flag}="):
            return given.removeprefix(f"{flag}=")
    return None


def unknown(name: str, known: Iterable[str], what: str, *, listed_by: str = "launch list") -> str:
    """A sentence about a name that is none of the known ones: the nearest, or where the list is."""
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"`{listed_by}` shows what there is."
    return f"unknown {what} {name!r}. {hint}"
