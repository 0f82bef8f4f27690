"""The command `launch`: a preset, or one of a few commands.

Nothing is imported here that takes time: `launch --version` and a misspelt name answer at once.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from launch.command_line.help import HELP
from launch.command_line.options import take_options
from launch.command_line.setting_names import as_flags
from launch.output.console import make_console, say
from launch.signals import INTERRUPTED, Interrupt, heard_by, is_interrupt, process_began
from pipeline.errors import RunError, UserError

Work = Callable[[Console], int | None]
"""A command's work; gives its exit status, None for 0."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command beside the presets.

    Attributes:
        usage: its arguments, for the list of commands.
        about: what it does, in a line.
        begin: imports what it needs and reads its arguments, while a signal ends the process at once
            (``launch.__main__``); returns the work itself, which takes the console and may be interrupted.
    """

    usage: str
    about: str
    begin: Callable[[list[str]], Work]


def main(argv: list[str] | None = None) -> int:
    """Runs the command line.

    Returns the exit status: 0 done, 1 a run failed, 2 a mistake in what was asked, 130 stopped by hand.
    """
    given = sys.argv[1:] if argv is None else argv
    began = process_began() if argv is None else time.time()
    try:
        plugins, arguments = take_options(_renamed(given), "--plugin", "a Python file, or the name of a module")
        return _dispatch(arguments, plugins, make_console(), began)
    except UserError as error:
        return _refuse(error, 2)
    except RunError as error:
        status = _refuse(error, 1)
        if error.kept:
            say(make_console(sys.stderr), error.kept)
        return status
    except (KeyboardInterrupt, Exception) as error:
        if not is_interrupt(error):
            raise
        say(make_console(sys.stderr), "stopped")
        return INTERRUPTED


def _renamed(arguments: list[str]) -> list[str]:
    """With the names that flags have now, for scripts that know those of before."""
    return [re.sub(r"^--ray-address(?==|$)", "--address", argument) for argument in arguments]


def _refuse(error: Exception, status: int) -> int:
    say(make_console(sys.stderr), f"error: {as_flags(str(error))}")
    return status


def _dispatch(arguments: list[str], plugins: list[str], console: Console, began: float) -> int:
    name, rest = (arguments[0], arguments[1:]) if arguments else ("help", [])
    if name in ("--version", "-V"):
        _print_version(console)
        return 0
    from launch.presets import load_plugins  # noqa: PLC0415

    load_plugins(plugins)
    if name in HELP or (name == "help" and not rest):
        from launch.commands.overview import print_overview  # noqa: PLC0415

        print_overview(console, COMMANDS)
        return 0
    if name == "help":
        return _dispatch([*rest, HELP[-1]], plugins, console, began)
    if name in COMMANDS:
        work = COMMANDS[name].begin(rest)
        with heard_by(Interrupt()):
            return work(console) or 0
    return _launch(name, rest, plugins, console, began)


def _launch(name: str, arguments: list[str], plugins: list[str], console: Console, began: float) -> int:
    """`launch PRESET …`, or `launch --config FILE …`; with --sweep or --seeds many such runs."""
    from launch.command_line.parse import names_config, parse_words, unknown, with_plugins  # noqa: PLC0415
    from launch.command_line.sweep_flags import take_sweep  # noqa: PLC0415
    from launch.presets import PRESETS  # noqa: PLC0415

    if name not in PRESETS and not names_config(name):
        if name.startswith("-"):
            raise UserError(f"{name}: flags come after a preset or a command, as in `launch cff-vit {name}`.")
        raise UserError(unknown(name, [*PRESETS, *COMMANDS], "preset or command"))
    sweep_flags, words = take_sweep([name, *arguments])
    parsed = with_plugins(parse_words(words), plugins)
    if (cluster := parsed.cluster) is not None:
        from launch.cluster.commands import run_there, sweep_there  # noqa: PLC0415

        typed = [name, *arguments, *(word for plugin in plugins for word in ("--plugin", plugin))]
        with heard_by(Interrupt()):
            if not sweep_flags.asked:
                return run_there(parsed, typed, cluster, console)
            from launch.sweep.command import read_asked  # noqa: PLC0415

            asked, _ = read_asked(sweep_flags, words, parsed, plugins)
            return sweep_there(asked, parsed, typed, cluster, console)
    if sweep_flags.asked:
        from launch.sweep.command import sweep  # noqa: PLC0415

        return sweep(sweep_flags, words, parsed, plugins, console)
    from launch.commands.train import train  # noqa: PLC0415

    with heard_by(Interrupt()):
        return train(parsed, console, began=began)


def _prepare(arguments: list[str]) -> Work:
    from launch.command_line.arguments import PrepareArguments  # noqa: PLC0415
    from launch.command_line.parse import parse  # noqa: PLC0415
    from launch.commands.prepare import prepare_data  # noqa: PLC0415

    parsed = parse(PrepareArguments, arguments, command="launch prepare")
    return lambda console: prepare_data(
        parsed.name,
        console,
        source=parsed.source,
        data_dir=parsed.data_dir,
        image_size=parsed.image_size,
        strict=parsed.strict_data,
    )


def _eval(arguments: list[str]) -> Work:
    from launch.command_line.arguments import EvalArguments  # noqa: PLC0415
    from launch.command_line.parse import parse  # noqa: PLC0415
    from launch.commands.evaluate import evaluate_run  # noqa: PLC0415

    parsed = parse(EvalArguments, arguments, command="launch eval")
    return lambda console: evaluate_run(
        parsed.run, console, batch_size=parsed.batch_size, superclasses=parsed.superclasses
    )


def _analyse(arguments: list[str]) -> Work:
    from launch.analyse.command import analyse_run  # noqa: PLC0415
    from launch.analyse.figures import Wishes  # noqa: PLC0415
    from launch.command_line.parse import parse  # noqa: PLC0415

    parsed = parse(Wishes, arguments, command="launch analyse")
    return lambda console: analyse_run(parsed, console)


def _predict(arguments: list[str]) -> Work:
    from launch.command_line.arguments import PredictArguments  # noqa: PLC0415
    from launch.command_line.parse import parse  # noqa: PLC0415
    from launch.commands.predict import predict  # noqa: PLC0415

    parsed = parse(PredictArguments, arguments, command="launch predict")
    return lambda console: predict(parsed.run, parsed.images, console, top=parsed.top)


def _export(arguments: list[str]) -> Work:
    from launch.command_line.arguments import ExportArguments  # noqa: PLC0415
    from launch.command_line.parse import parse  # noqa: PLC0415
    from launch.commands.export import export  # noqa: PLC0415

    parsed = parse(ExportArguments, arguments, command="launch export")
    return lambda console: export(parsed.run, parsed.file, console)


def _bench(arguments: list[str]) -> Work:
    from launch.bench.command import bench  # noqa: PLC0415

    return lambda console: bench(arguments, console)


def _plan(arguments: list[str]) -> Work:
    from launch.plan.command import plan  # noqa: PLC0415

    return lambda console: plan(arguments, console)


def _doctor(arguments: list[str]) -> Work:
    from launch.doctor.command import doctor  # noqa: PLC0415

    return lambda console: doctor(arguments, console)


def _reproduce(arguments: list[str]) -> Work:
    from launch.reproduce.command import reproduce  # noqa: PLC0415

    return lambda console: reproduce(arguments, console)


def _resume(arguments: list[str]) -> Work:
    from launch.command_line.arguments import ResumeArguments  # noqa: PLC0415
    from launch.command_line.parse import parse  # noqa: PLC0415
    from launch.output.run_folder import is_reproduction, is_sweep  # noqa: PLC0415

    parsed, began = parse(ResumeArguments, arguments, command="launch resume"), process_began()
    if (cluster := parsed.cluster) is not None:
        from launch.cluster.commands import resume_there  # noqa: PLC0415

        return lambda console: resume_there(parsed, arguments, cluster, console)
    if is_sweep(parsed.run):
        from launch.sweep.command import go_on  # noqa: PLC0415

        return lambda console: go_on(parsed, console)
    if is_reproduction(parsed.run):
        from launch.reproduce.command import go_on as go_on_with_table  # noqa: PLC0415

        return lambda console: go_on_with_table(parsed, console)
    from launch.commands.resume import resume  # noqa: PLC0415

    return lambda console: resume(parsed, console, began=began)


def _checkpoint(arguments: list[str]) -> Work:
    from launch.command_line.arguments import CheckpointArguments  # noqa: PLC0415
    from launch.command_line.parse import parse  # noqa: PLC0415
    from launch.commands.resume import checkpoint  # noqa: PLC0415

    parsed = parse(CheckpointArguments, arguments, command="launch checkpoint")
    return lambda console: checkpoint(parsed, console)


def _trace(arguments: list[str]) -> Work:
    from launch.command_line.arguments import TraceArguments  # noqa: PLC0415
    from launch.command_line.parse import parse  # noqa: PLC0415
    from launch.commands.trace import trace  # noqa: PLC0415

    parsed = parse(TraceArguments, arguments, command="launch trace")
    return lambda console: trace(parsed, console)


def _attach(arguments: list[str]) -> Work:
    from launch.cluster.commands import attach  # noqa: PLC0415
    from launch.command_line.arguments import AttachArguments  # noqa: PLC0415
    from launch.command_line.parse import parse  # noqa: PLC0415

    parsed = parse(AttachArguments, arguments, command="launch attach")
    return lambda console: attach(parsed.cluster, parsed.run, console)


def _down(arguments: list[str]) -> Work:
    from launch.cluster.commands import down  # noqa: PLC0415
    from launch.command_line.arguments import DownArguments  # noqa: PLC0415
    from launch.command_line.parse import parse  # noqa: PLC0415

    parsed = parse(DownArguments, arguments, command="launch down")
    return lambda console: down(parsed.cluster, console)


def _dashboard(arguments: list[str]) -> Work:
    from launch.command_line.arguments import DashboardArguments  # noqa: PLC0415
    from launch.command_line.parse import parse  # noqa: PLC0415
    from launch.commands.dashboard import dashboard  # noqa: PLC0415

    parsed = parse(DashboardArguments, arguments, command="launch dashboard")
    return lambda console: dashboard(parsed.runs, console, host=parsed.host, port=parsed.port, browser=parsed.browser)


def _top(arguments: list[str]) -> Work:
    from launch.command_line.arguments import TopArguments  # noqa: PLC0415
    from launch.command_line.parse import parse  # noqa: PLC0415
    from launch.commands.top import top  # noqa: PLC0415

    parsed = parse(TopArguments, arguments, command="launch top")
    return lambda console: top(parsed.run, console, once=parsed.once, ray_address=parsed.ray_address)


def _runs(arguments: list[str]) -> Work:
    from launch.command_line.arguments import RunsArguments  # noqa: PLC0415
    from launch.command_line.parse import parse  # noqa: PLC0415
    from launch.commands.runs import print_runs  # noqa: PLC0415

    parsed = parse(RunsArguments, arguments, command="launch runs")
    return lambda console: print_runs(parsed.places, console)


def _compare(arguments: list[str]) -> Work:
    from launch.command_line.arguments import CompareArguments  # noqa: PLC0415
    from launch.command_line.parse import parse  # noqa: PLC0415
    from launch.commands.compare import compare  # noqa: PLC0415

    parsed = parse(CompareArguments, arguments, command="launch compare")
    return lambda console: compare(parsed.runs, console)


def _chaos(arguments: list[str]) -> Work:
    from launch.chaos.command import chaos  # noqa: PLC0415

    return lambda console: chaos(arguments, console)


def _slurm(arguments: list[str]) -> Work:
    from launch.slurm.command import slurm  # noqa: PLC0415

    return lambda console: slurm(arguments)


def _list(arguments: list[str]) -> Work:
    from launch.command_line.arguments import ListArguments  # noqa: PLC0415
    from launch.command_line.parse import parse  # noqa: PLC0415
    from launch.commands.overview import print_list  # noqa: PLC0415

    data_dir = parse(ListArguments, arguments, command="launch list").data_dir
    return lambda console: print_list(console, data_dir)


def _completion(arguments: list[str]) -> Work:
    from launch.commands.completion import print_completion  # noqa: PLC0415

    return lambda console: print_completion(arguments)


COMMANDS: dict[str, Command] = {
    "list": Command(usage="", about="presets and data sets", begin=_list),
    "prepare": Command(usage="NAME", about="fetch, check and shard a data set", begin=_prepare),
    "resume": Command(
        usage="RUN", about="go on from a run's last checkpoint, with any number of stages; with a sweep", begin=_resume
    ),
    "reproduce": Command(usage="[TABLE]", about="a paper's table beside the paper's figures; --list", begin=_reproduce),
    "checkpoint": Command(usage="RUN", about="have a run that goes on save a checkpoint now", begin=_checkpoint),
    "attach": Command(usage="FILE [RUN]", about="show and fetch a run that --cluster FILE started", begin=_attach),
    "down": Command(usage="FILE", about="end Ray on every machine of a cluster.yaml", begin=_down),
    "top": Command(usage="[RUN]", about="the live table of a run that goes on elsewhere", begin=_top),
    "trace": Command(usage="RUN", about="what every stage of a run that goes on does when, for Perfetto", begin=_trace),
    "runs": Command(usage="[RUN…]", about="a table of runs: how far, how good, how fast", begin=_runs),
    "compare": Command(usage="RUN RUN…", about="settings that differ, accuracy, speed, side by side", begin=_compare),
    "dashboard": Command(usage="[RUN…]", about="TensorBoard: all stages of a run in one chart", begin=_dashboard),
    "eval": Command(usage="RUN", about="accuracy and Fisher criterion of every layer", begin=_eval),
    "analyse": Command(usage="RUN", about="pictures and figures of what every layer has learned", begin=_analyse),
    "predict": Command(usage="RUN IMAGE…", about="classes of image files", begin=_predict),
    "export": Command(usage="RUN FILE", about="one .safetensors file, for `from pipeline import load`", begin=_export),
    "plan": Command(usage="PRESET", about="time the layers and predict the pipeline on 1 to 64 devices", begin=_plan),
    "bench": Command(
        usage="", about="the pipeline beside backprop, DDP, GPipe and 1F1B on these devices", begin=_bench
    ),
    "doctor": Command(usage="", about="is this machine fit for a run; --gpu measures it into a report", begin=_doctor),
    "slurm": Command(usage="PRESET", about="print a run as a job for Slurm's sbatch", begin=_slurm),
    "chaos": Command(usage="PRESET", about="kill a run's workers at random, and show that its bits stay", begin=_chaos),
    "completion": Command(usage="SHELL", about="completion for bash or zsh", begin=_completion),
}


def _print_version(console: Console) -> None:
    from launch.output.versions import versions  # noqa: PLC0415

    known = versions()
    others = ", ".join(f"{name} {version or 'missing'}" for name, version in known.items() if name != "localpipe")
    say(console, f"localpipe {known['localpipe']} ({others})")


if __name__ == "__main__":
    sys.exit(main())
