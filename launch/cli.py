"""The command `launch`: one preset, or one of a few commands."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from launch.presets import PRESETS
from pipeline import settings as settings_module
from pipeline.errors import RunError, UserError
from pipeline.settings import Settings

_PIPED_WIDTH = 120  # columns, where the output is no terminal


@dataclass(frozen=True, kw_only=True)
class PrepareArguments:
    """Fetches a data set, checks its published md5s and writes it as WebDataset shards with an index."""

    name: tyro.conf.Positional[str]
    """Data set (see `launch list`), or a folder of images by class or of WebDataset shards."""
    source: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Where its files are: FILE, FOLDER or URL. Default: the official site, else packages with the same bytes."""
    data_dir: Path | None = None
    """Where to put it. Default: $LOCALPIPE_DATA, else ~/.cache/localpipe/data."""
    image_size: int | None = None
    """For a folder of images: side in pixels that all are brought to. Default: their own where all have one size of
    at most 64 that patches divide, else a square near their median shorter side, at most 64."""
    strict_data: bool = False
    """Refuse images that cannot be read. Default: leave them out and list them with their reasons."""


@dataclass(frozen=True, kw_only=True)
class EvalArguments:
    """Test accuracy and Fisher criterion of every layer of a run."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    batch_size: int | None = None
    """Images at a time. Default: the run's."""
    superclasses: str | None = None
    """Also the accuracy on groups of classes that the run never learned, from its label embeddings: cifar100,
    cifar10-animals, cifar10-finer, fashion-mnist, or a FILE with a line "super-class: class, class, …" for each
    (or JSON)."""


@dataclass(frozen=True, kw_only=True)
class PredictArguments:
    """The most likely classes of image files."""

    run: tyro.conf.Positional[Path]
    """Run folder, or a file written by `launch export`."""
    images: tyro.conf.Positional[list[Path]]
    """Image files. Those that cannot be read are named at the end, with exit status 2."""
    top: int = 3
    """Classes to name for each image."""


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Writes a run's network to one file that `from pipeline import load` reads, without Ray."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    file: tyro.conf.Positional[Path]
    """New file, FILE.safetensors."""


@dataclass(frozen=True, kw_only=True)
class ListArguments:
    """Presets, and data sets with whether they are prepared here."""

    data_dir: Path | None = None
    """Where prepared data sets lie. Default: $LOCALPIPE_DATA, else ~/.cache/localpipe/data."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command line.

    Returns the exit status: 0 done, 1 a run failed, 2 a mistake in what was asked, 130 stopped by hand.
    """
    arguments = sys.argv[1:] if argv is None else argv
    console = Console() if sys.stdout.isatty() else Console(width=_PIPED_WIDTH)
    try:
        return _dispatch(arguments, console)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str], console: Console) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _print_help(console)
        return 0
    name, rest = arguments[0], arguments[1:]
    if name in PRESETS:
        return _launch(name, rest, console)
    if name in _COMMANDS:
        _COMMANDS[name](rest, console)
        return 0
    known = [*PRESETS, *_COMMANDS]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    raise UserError(f"unknown command {name!r}. {hint}Presets: {', '.join(PRESETS)}. Commands: {', '.join(_COMMANDS)}.")


def _launch(name: str, arguments: list[str], console: Console) -> int:
    config, arguments = take_config(arguments)
    preset = PRESETS[name]
    default = preset.settings_for(peek(arguments, "--data"))
    if config is not None:
        default = replace(settings_module.load(Path(config)), preset=name, run_dir=None)
    settings = tyro.cli(
        tyro.conf.OmitArgPrefixes[tyro.conf.AvoidSubcommands[Settings]],
        args=arguments,
        default=default,
        prog=f"launch {name}",
        description=(
            f"{preset.title}.\n\n{preset.paper}\n\n"
            "--config FILE starts from the config.json of a run folder instead of the preset; flags override it."
        ),
    )
    from launch.train import train  # noqa: PLC0415 (Ray takes a second to import; --help must not wait for it)

    return train(settings, console)


def take_config(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Takes --config FILE off the arguments: it settles the defaults of all others."""
    rest: list[str] = []
    config = None
    given = iter(arguments)
    for argument in given:
        if argument == "--config":
            config = next(given, None)
            if config is None:
                raise UserError("--config needs a file: the config.json of a run folder.")
        elif argument.startswith("--config="):
            config = argument.removeprefix("--config=")
        else:
            rest.append(argument)
    return config, rest


def peek(arguments: list[str], flag: str) -> str | None:
    """The value of a flag that settles the defaults of others; it stays among the arguments."""
    for given, following in zip(arguments, [*arguments[1:], None], strict=True):
        if given == flag:
            return following
        if given.startswith(f"{flag}="):
            return given.removeprefix(f"{flag}=")
    return None


def _prepare(arguments: list[str], console: Console) -> None:
    from launch.data import prepare_data  # noqa: PLC0415

    parsed = tyro.cli(PrepareArguments, args=arguments, prog="launch prepare")
    prepare_data(
        parsed.name,
        console,
        source=parsed.source,
        data_dir=parsed.data_dir,
        image_size=parsed.image_size,
        strict=parsed.strict_data,
    )


def _eval(arguments: list[str], console: Console) -> None:
    from launch.inspect import evaluate_run  # noqa: PLC0415

    parsed = tyro.cli(EvalArguments, args=arguments, prog="launch eval")
    evaluate_run(parsed.run, console, batch_size=parsed.batch_size, superclasses=parsed.superclasses)


def _analyse(arguments: list[str], console: Console) -> None:
    from launch.analyse import Wishes, analyse_run  # noqa: PLC0415

    wishes = tyro.cli(Wishes, args=arguments, prog="launch analyse")
    analyse_run(wishes, console)


def _predict(arguments: list[str], console: Console) -> None:
    from launch.inspect import predict  # noqa: PLC0415

    parsed = tyro.cli(PredictArguments, args=arguments, prog="launch predict")
    predict(parsed.run, parsed.images, console, top=parsed.top)


def _export(arguments: list[str], console: Console) -> None:
    from launch.inspect import export  # noqa: PLC0415

    parsed = tyro.cli(ExportArguments, args=arguments, prog="launch export")
    export(parsed.run, parsed.file, console)


def _bench(arguments: list[str], console: Console) -> None:
    from launch.bench.command import bench  # noqa: PLC0415

    bench(arguments, console)


def _plan(arguments: list[str], console: Console) -> None:
    from launch.plan import plan  # noqa: PLC0415

    plan(arguments, console)


def _list(arguments: list[str], console: Console) -> None:
    from launch.data import print_data_sets  # noqa: PLC0415

    parsed = tyro.cli(ListArguments, args=arguments, prog="launch list")
    table = Table(
        "preset", "what it trains", "in the paper, %", title="Presets: launch PRESET [--help]", title_justify="left"
    )
    for name, preset in PRESETS.items():
        table.add_row(name, preset.title, preset.reported)
    console.print(table)
    print_data_sets(console, parsed.data_dir)


_COMMANDS: dict[str, Callable[[list[str], Console], None]] = {
    "list": _list,
    "prepare": _prepare,
    "eval": _eval,
    "analyse": _analyse,
    "predict": _predict,
    "export": _export,
    "bench": _bench,
    "plan": _plan,
}


def _print_help(console: Console) -> None:
    console.print("usage: launch PRESET [flags]", highlight=False, markup=False)
    console.print("       launch COMMAND …          --help after either says more\n", highlight=False, markup=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, preset in PRESETS.items():
        table.add_row(f"  {name}", preset.title)
    table.add_row("", "")
    for name, about in (
        ("list", "presets and data sets"),
        ("prepare NAME", "fetch, check and shard a data set"),
        ("eval RUN", "accuracy and Fisher criterion of every layer"),
        ("analyse RUN", "pictures and figures of what every layer has learned"),
        ("predict RUN IMAGE…", "classes of image files"),
        ("export RUN FILE", "one .safetensors file, for `from pipeline import load`"),
        ("bench", "the pipeline beside backprop, DDP, GPipe and 1F1B on these devices"),
        ("plan PRESET", "times the layers and predicts the pipeline on 1 to 64 devices"),
    ):
        table.add_row(f"  {name}", about)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
