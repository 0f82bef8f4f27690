"""What the smaller commands take: a frozen dataclass each, whose fields are flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

RunFolderArgument = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
"""A run folder, given without a name."""

Address = Annotated[str | None, tyro.conf.arg(name="address", metavar="ADDRESS")]
Cluster = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
Detach = tyro.conf.FlagCreatePairsOff[bool]

DataDir = Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")]


@dataclass(frozen=True, kw_only=True)
class PrepareArguments:
    """Fetches a data set, checks its published md5s and writes it as WebDataset shards with an index."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Data set (see `launch list`), or a folder of images by class or of WebDataset shards."""
    source: Annotated[str | None, tyro.conf.arg(name="from", metavar="PLACE")] = None
    """Where its files are: a file, a folder or a URL. Default: the official site, else packages with the same bytes."""
    data_dir: DataDir = None
    """Where to put it. Default: $LOCALPIPE_DATA, else ~/.cache/localpipe/data."""
    image_size: int | None = None
    """For a folder of images: side in pixels that all are brought to. Default: their own where all have one size of
    at most 64 that patches divide, else a square near their median shorter side, at most 64."""
    strict_data: tyro.conf.FlagCreatePairsOff[bool] = False
    """Refuse images that cannot be read. Default: leave them out and list them with their reasons."""


@dataclass(frozen=True, kw_only=True)
class EvalArguments:
    """Test accuracy and Fisher criterion of every layer of a run."""

    run: RunFolderArgument
    """Run folder."""
    batch_size: int | None = None
    """Images at a time. Default: the run's."""
    superclasses: Annotated[str | None, tyro.conf.arg(metavar="NAME|FILE")] = None
    """Also the accuracy on groups of classes that the run never learned, from its label embeddings: cifar100,
    cifar10-animals, cifar10-finer, fashion-mnist, or a file with a line "super-class: class, class, …" for each
    (or JSON)."""


@dataclass(frozen=True, kw_only=True)
class PredictArguments:
    """The most likely classes of image files."""

    run: RunFolderArgument
    """Run folder, or a file written by `launch export`."""
    images: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE…")]
    """Image files. Those that cannot be read are named at the end, with exit status 2."""
    top: int = 3
    """Classes to name for each image."""


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Writes a run's network to one file that `from pipeline import load` reads, without Ray."""

    run: RunFolderArgument
    """Run folder."""
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """New file, FILE.safetensors."""


@dataclass(frozen=True, kw_only=True)
class ListArguments:
    """Presets, and data sets with whether they are prepared here."""

    data_dir: DataDir = None
    """Where prepared data sets lie. Default: $LOCALPIPE_DATA, else ~/.cache/localpipe/data."""


@dataclass(frozen=True, kw_only=True)
class ResumeArguments:
    """Goes on with a run from its last checkpoint, in its folder. Where and how it is divided may change, and the bits
    are those of a run that was never stopped; what changes numbers says so."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder, or the URL of a copy that --mirror made, which is fetched into runs/. Or the folder of a sweep or
    of a table that `launch reproduce` made: runs that are not finished go on, those that have not begun follow."""
    stages: int | None = None
    """Pipeline stages. Default: as before."""
    partition: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="N …")] = None
    """Layers of each stage, such as 3 2. Default: as before, or even where --stages is given."""
    executor: Literal["ray", "threads", "serial"] | None = None
    """ray, threads or serial. Default: as before."""
    device: Literal["auto", "cpu", "cuda"] | None = None
    """auto, cpu or cuda. Default: auto. Another kind of device computes other last bits."""
    transport: str | None = None
    """How activations travel. Default: auto."""
    feeders: int | None = None
    """Workers that read the images. Default: as before."""
    data_on: Literal["auto", "device", "host"] | None = None
    """Where decoded images are: auto, device or host. Default: as before."""
    ray_address: Address = None
    """Ray cluster to join. Default: as before."""
    dashboard: bool | None = None
    """Also start the private cluster's dashboard. Default: as before."""
    epochs: int | None = None
    """Epochs in all, for more than the run was told. Also of a run that is over."""
    lr: float | None = None
    """Another learning rate from here on. Changes numbers."""
    precision: Literal["fp32", "tf32", "bf16"] | None = None
    """Other arithmetic from here on. Changes numbers."""
    checkpoint_every: Annotated[str | None, tyro.conf.arg(metavar="STEPS|TIME|off")] = None
    """How often checkpoints are saved. Default: as before."""
    keep_checkpoints: int | None = None
    """How many are kept. Default: as before."""
    mirror: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None
    """Where the run folder is copied to. Default: as before."""
    cluster: Cluster = None
    """A cluster.yaml: go on there, from the run's folder on its head, else from this one, which is sent there first."""
    detach: Detach = False
    """On a cluster: end when the run goes on. `launch attach` shows and fetches it."""
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(aliases=["-q"])] = False
    """-q: print the result and warnings alone."""
    verbose: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(aliases=["-v"])] = False
    """-v: print also where each worker is, each checkpoint, and how long each part of the start took."""


@dataclass(frozen=True, kw_only=True)
class ReproduceArguments:
    """What `launch reproduce` takes besides the flags of its runs."""

    table: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[TABLE]")] = None
    """Name of the table, as --list has it."""
    list: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Say which tables there are, what each measures, and how much work it is."""
    seeds: int | None = None
    """Runs of each row. Default: the table's, 3 or what its paper has."""
    seed: int = 0
    """The first of their seeds."""
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT …")] = ()
    """Only the rows whose labels have all these texts in them: --only CIFAR-10 CFF+M."""
    skip_missing: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Leave out rows whose data set is not prepared here. Default: refuse."""
    at_once: int | None = None
    """Runs beside each other at most. Default: as many as there are devices for, on a cluster one."""
    run_dir: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder for the table and its runs; the same command goes on there. Default: runs/reproduce-TABLE-DATE-TIME."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Check everything, print the grid and its commands, and start nothing."""
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(aliases=["-q"])] = False
    """-q: print the table and warnings alone."""


@dataclass(frozen=True, kw_only=True)
class TopArguments:
    """The live table of a run that goes on in another terminal: where every stage's time goes, and what limits it."""

    run: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = None
    """Run folder, or a run's name on a cluster. Default: the run in runs/ that goes on, of several the newest."""
    ray_address: Address = None
    """Ray cluster on which the run goes on: its folder need not be seen from here. HOST:PORT on one of the cluster's
    machines, ray://HOST:10001 elsewhere, or auto. Default: RAY_ADDRESS where no run goes on in runs/."""
    once: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print it once, as it also does where the output is no terminal."""


@dataclass(frozen=True, kw_only=True)
class RunsArguments:
    """A table of runs: how far each has come, how good and how fast it is."""

    places: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="RUN…")] = field(default_factory=list)
    """Run folders, or folders of them. Default: runs."""


@dataclass(frozen=True, kw_only=True)
class CompareArguments:
    """Runs side by side: the settings in which they differ, accuracy, speed, and where every stage's time went. Runs
    that differ in their seed alone are one column, with mean and standard deviation."""

    runs: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="RUN…")]
    """Two run folders or more, or folders of them."""


@dataclass(frozen=True, kw_only=True)
class DashboardArguments:
    """TensorBoard with every stage's utilisation, waits, queue and speed in one chart each; layers, settings, pictures.
    Serves on this machine alone unless told otherwise."""

    runs: Annotated[list[Path], tyro.conf.Positional, tyro.conf.arg(metavar="RUN…")] = field(default_factory=list)
    """Run folders, or folders of them. Default: runs."""
    port: int = 0
    """Port to serve on. 0: a free one."""
    host: str = "127.0.0.1"
    """Address to serve on. Whoever reaches it sees the runs: 0.0.0.0 is everybody."""
    browser: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also open it in a browser."""


@dataclass(frozen=True, kw_only=True)
class TraceArguments:
    """Traces the next training steps of a run that goes on: what every stage does when, in RUN/trace.json for
    ui.perfetto.dev or chrome://tracing, and as a picture. It takes the place of an earlier trace of the run."""

    run: RunFolderArgument
    """Run folder."""
    steps: int = 20
    """Training steps to trace."""
    profile: Annotated[int, tyro.conf.arg(metavar="STEPS")] = 0
    """Of so many of them, the last ones, also operators and kernels, with PyTorch's profiler."""
    wait: float = 120.0
    """Seconds to wait for it."""


@dataclass(frozen=True, kw_only=True)
class CheckpointArguments:
    """Has a run that goes on save a checkpoint now, from which `launch resume` can go on."""

    run: RunFolderArgument
    """Run folder."""
    wait: float = 120.0
    """Seconds to wait for it."""


@dataclass(frozen=True, kw_only=True)
class AttachArguments:
    """Shows a run that was started with --cluster, from its first line on, and fetches its folder when it is over.
    Ctrl-C stops the run, which saves a checkpoint; a second one leaves it. Closing the terminal leaves it going on."""

    cluster: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The cluster.yaml."""
    run: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN]")] = None
    """Its name, or folder. Default: the newest one."""


@dataclass(frozen=True, kw_only=True)
class DownArguments:
    """Ends Ray on every machine of a cluster, removes the copy of the private key that `ray up` left on its head, and
    gives a cloud's machines back. Runs that go on there end without a checkpoint: stop them first."""

    cluster: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The cluster.yaml."""
