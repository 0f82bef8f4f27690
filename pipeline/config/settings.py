"""What a run is told: every setting, its default and its one-line meaning.

Each group is a frozen dataclass; the command line makes one flag of each field, and the resolved settings are saved
beside the run as JSON. A field's metadata says where its flag is not plain: ``metavar`` what stands for its value,
``flag`` another name than the field's, or None for no flag. What stands below a field names others as errors do
(``pipeline.errors``): `lr`, or with its group where the name alone says too little, `readout.mode`. Settings above
``PipelineSettings`` decide the numbers; those in it do not, except those that say so.
"""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from pipeline import plain_json
from pipeline.errors import UserError
from pipeline.methods import CffSettings, MethodField
from pipeline.methods.baseline import Baseline
from pipeline.nets import NetField, VitSettings
from pipeline.plugins import load_plugin
from pipeline.registry import STRICT, problems, unknown_names
from pipeline.transport import Transport

TransferDtype = Literal["fp32", "bf16"]
Precision = Literal["fp32", "tf32", "bf16"]


def _as_set_now(how: Any) -> Any:
    return "on" if how == "graphs" else how  # which `graphs` asks for since version 0.2


Compile = Annotated[Literal["off", "on", "auto"], BeforeValidator(_as_set_now)]
Graphs = Literal["auto", "on", "off"]

NEAR_DEPTH = 2
"""Messages that may wait between two stages that are near each other."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The images a run learns from."""

    data: str = field(default="digits", metadata={"metavar": "NAME|FOLDER|URL"})
    """Name of a data set (see `launch list`), a folder of images by class or of WebDataset shards, or the URL of a
    folder that `launch prepare` made, which is copied."""
    data_dir: str | None = field(default=None, metadata={"metavar": "FOLDER"})
    """Where prepared data sets lie. Default: $LOCALPIPE_DATA, else ~/.cache/localpipe/data."""
    image_size: int | None = None
    """For a folder of images or foreign shards: side in pixels that all are brought to. Default: their own where all
    have one size of at most 64 that patches divide, else a square near their median shorter side, at most 64."""
    validation: float | Literal["test"] = 0.1
    """Share of the training images kept back for validation. test: none; all are trained on, and the test images choose
    the epoch that is kept, as in papers that report the best test accuracy. Such an accuracy is too good; with `keep`
    last they choose nothing."""
    train_fraction: float = 1.0
    """Share of the remaining training images that is used, the same of every class; `seed` decides which
    (Aghagolzadeh & Ezoji 2025, Table 4, limited data)."""
    label_noise: float = 0.0
    """Share of the training labels changed to another class, the same of every class and to each other one equally
    often; `seed` decides which. Validation and test keep theirs (Aghagolzadeh & Ezoji 2025, Table 4, noisy labels)."""
    strict_data: bool = False
    """Refuse a damaged shard or image. Default: skip it, and list it with its reason in the run folder."""
    memory_budget: float = 4.0
    """GiB of decoded images that a feeder keeps in memory after the first epoch."""
    shuffle_window: int = 65536
    """Images shuffled together; a larger set is shuffled by shard and then within windows of this many."""


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """Random changes to training images, drawn anew for each image, view and epoch."""

    crop_padding: int | Literal["auto"] = "auto"
    """Zero padding of the random crop in pixels, 0 for none. auto: the data set's (CIFAR-10: 4)."""
    flip: Literal["auto", "on", "off"] = "auto"
    """Random horizontal flip. auto: on where the data set's classes allow it."""
    randaugment_ops: int = 0
    """RandAugment operations per image, 0 for none (Aghagolzadeh & Ezoji 2025: 3)."""
    randaugment_magnitude: int = 14
    """RandAugment magnitude, 0 to 30."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Local updates: one optimizer per layer."""

    epochs: int = 600
    """Passes over the training images."""
    max_steps: int | None = None
    """For a quick look: training steps of the layers at most. There are fewer epochs, and no pass has more batches,
    validation and test included. Default: $LOCALPIPE_MAX_STEPS, else all."""
    batch_size: int = 512
    """Images per step, in one view."""
    lr: float = 4e-3
    """Learning rate of each layer's optimizer."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Of each layer. adamw: AdamW (Loshchilov & Hutter 2019), or what the method has in its place. sgd: stochastic
    gradient descent with Nesterov's momentum. Label embeddings and readouts have an AdamW in any case."""
    sgd_momentum: float = 0.9
    """Momentum of `optimizer` sgd; 0: none."""
    weight_decay: float = 0.01
    """Weight decay of each layer's optimizer: decoupled in adamw, a part of the gradient in sgd."""
    lr_schedule: Literal["milestones", "cosine"] = "milestones"
    """How learning rates fall. milestones: at `milestones`. cosine: along half a cosine over `epochs`, to 0; a run that
    is resumed for more of them goes on along a longer one."""
    warmup_epochs: int = 0
    """First epochs, in which learning rates grow linearly to what they are otherwise."""
    milestones: tuple[int, ...] = ()
    """Epochs after which the learning rate falls, of layers, label embeddings and online readouts alike."""
    lr_decay: float = 0.5
    """What it is multiplied by at each milestone."""
    last_batch: Literal["drop", "keep"] = "drop"
    """The images of an epoch that fill no batch. drop: each epoch leaves out others. keep: a smaller last batch."""
    validation_views: Literal["plain", "augmented"] = "plain"
    """What validation sees. plain: the images as they are. augmented: random views of them, as many as in training."""
    keep: Literal["loss", "accuracy", "last"] = "loss"
    """Which epoch's weights are kept: the last layer's lowest validation loss, its highest validation accuracy, or the
    last epoch's."""
    seed: int = 0
    """Seed of everything random."""
    init_from: str | None = field(default=None, metadata={"metavar": "RUN"})
    """Run folder, or file of `launch export`, whose layers' weights the layers begin with. It has the same net, trained
    layer by layer or as one piece by a `baseline`. With `baseline` bp the classifier begins with that run's last
    readout, or its classifier: fine-tuning of the whole net. Default: random weights by `seed`."""

    def lr_factor(self, epoch: int) -> float:
        """What the learning rates are multiplied by in an epoch (0-based)."""
        warm = min(1.0, (epoch + 1) / (self.warmup_epochs + 1))
        if self.lr_schedule == "cosine":
            return warm * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return warm * self.lr_decay ** sum(epoch >= milestone for milestone in self.milestones)


@dataclass(frozen=True, kw_only=True)
class ReadoutSettings:
    """A linear classifier on a layer's features: stage 2 of CFF, the final layer of CFL and DCL."""

    mode: Literal["after", "online", "none"] = field(default="after", metadata={"flag": "readout"})
    """after: on the frozen layers, once they have learned (CFF). online: with them, one more local layer (CFL, DCL).
    none: the layers predict by themselves, from the similarity to label embeddings or from goodness."""
    readout_layers: Literal["all", "last"] = "all"
    """Layers that get one."""
    readout_norm: bool = True
    """LayerNorm before the linear layer."""
    readout_epochs: int = 50
    """Passes over the training images for `readout.mode` after."""
    readout_keep: Literal["last", "best"] = "last"
    """Of the epochs of `readout.mode` after, the one whose readouts are kept: the last, or each readout's lowest
    cross-entropy on the validation images."""
    readout_views: Literal["augmented", "plain"] = "augmented"
    """What readouts of `readout.mode` after learn from. augmented: a random view of each image, drawn anew in every
    epoch. plain: the images as they are."""
    readout_lr: float | Literal["lr"] = 5e-4
    """Learning rate of the readouts' AdamW. lr: the layers'."""
    readout_milestones: tuple[float, ...] = ()
    """Shares of `readout_epochs` after which the readouts' learning rate halves, for `readout.mode` after."""
    readout_weight_decay: float = 0.01
    """Decoupled weight decay of the readouts' AdamW. 0 makes it Adam."""
    readout_dropout: float = 0.0
    """Share of what a readout sees that is dropped while it learns."""

    def lr_factor(self, epoch: int) -> float:
        """What the learning rate is multiplied by in an epoch (0-based) of `readout.mode` after."""
        return 0.5 ** sum(epoch >= share * self.readout_epochs for share in self.readout_milestones)

    def see(self, *, training: bool) -> bool:
        """Whether readouts look at a batch, from which the layers learn or not. Those that learn afterwards do not look
        while the layers do."""
        return not training or self.mode == "online"

    @property
    def judged(self) -> bool:
        """Whether readouts are validated after each of their epochs."""
        return self.mode == "after" and self.readout_keep == "best"


@dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """Where and how the work is done. `threads`, `precision`, `compile` and `transfer_dtype` change bits and say so."""

    executor: Literal["ray", "threads", "serial"] = "ray"
    """ray: an actor per stage. threads: a thread per stage, in this process. serial: one plain loop, the reference."""
    stages: int | Literal["auto"] = "auto"
    """Pipeline stages. auto: as many as devices, at most as many as layers; with `partition` balanced only as many as
    make the pipeline faster."""
    partition: Literal["even", "balanced"] | tuple[int, ...] = "even"
    """Layers of each stage. even: as many in each. balanced: the layers are timed first, and divided so that the
    slowest stage is as fast as can be. Or numbers: 3 2 puts layers 1-3 in the first stage and 4-5 in the second."""
    queue_depth: int | Literal["auto"] = NEAR_DEPTH
    """Messages that may wait between two stages before the upstream one is held back. auto: between machines that are
    far from each other, as many as keep the stages busy, from the measured delay and the timed layers; else 2."""
    feeders: int = 1
    """Workers that read, shuffle and batch the images. 0: the first stage does it between its steps."""
    data_on: Literal["auto", "device", "host"] = "auto"
    """Where decoded images are once they have been read. device: on the first stage's, which is sent each of them once
    and from then on the numbers of a batch's; they may take a quarter of its free memory. host: every batch is sent.
    auto: device on a GPU that has room for them, within `memory_budget`; else host. Changes no bits."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a GPU, else CPU threads."""
    transport: Transport = "auto"
    """How activations travel between stages. auto: NCCL between GPUs, shared memory between CPU stages of one machine,
    gloo otherwise."""
    transfer_dtype: TransferDtype = "fp32"
    """Precision in which a layer's activations are passed on, also within a stage. bf16: half the bytes.
    Changes bits."""
    threads: int = 1
    """CPU threads per stage. Changes bits: 1 and 2 threads sum in different orders."""
    precision: Precision = "fp32"
    """Arithmetic of the layers' matrix products and convolutions. tf32: a GPU's, of float32 factors rounded to 11 bits.
    bf16: autocast. Changes bits."""
    deterministic: Literal["on", "warn"] = "on"
    """Kernels of a GPU. on: those that give the same bits every time; an operation that has none ends the run. warn: it
    is used all the same, with a warning, and so are attention's faster ones, whose bits change from run to run."""
    compile: Compile = "off"
    """torch.compile of the layers' forward and backward pass; layers of one shape are compiled once, and what was
    compiled is kept on disk. auto: on where the run is long enough to gain by it. Changes bits."""
    graphs: Graphs = "auto"
    """On GPUs a layer's whole training step as a CUDA graph: forward pass, loss, backward pass and update are captured
    once, and launched as one in every step; with `compile` the compiled kernels are. auto: where the method allows it;
    a layer whose step cannot be captured goes on without, which is said. on: it ends the run. Changes no bits."""
    dashboard: bool = False
    """Also start the private cluster's dashboard, where Ray has this run's figures among its metrics. On this machine
    alone."""
    ray_address: str | None = field(default=None, metadata={"flag": "address", "metavar": "ADDRESS"})
    """Ray cluster to join, such as auto or ray://head:10001; local: one that is started here for this run alone.
    Default: $RAY_ADDRESS, else that of a Ray node that runs here, else local."""
    resource_timeout: float = 60.0
    """Seconds to wait for the devices that the stages ask for."""
    stall_timeout: float = 300.0
    """Seconds without a message after which a neighbour counts as stuck."""

    @property
    def is_measured(self) -> bool:
        """Whether something of it is decided by measuring, before the run."""
        return self.partition == "balanced" or self.queue_depth == "auto"

    @property
    def depth(self) -> int:
        """Messages that may wait between two stages; auto is for machines that are near each other until it is decided
        otherwise."""
        return NEAR_DEPTH if self.queue_depth == "auto" else self.queue_depth


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """What is saved while the run goes on, so that it can go on after whatever ends it. None of it changes bits."""

    checkpoint_every: str = field(default="5m", metadata={"metavar": "STEPS|TIME|off"})
    """How often everything that training depends on is saved: training steps such as 500, or a time such as 30s, 5m or
    1h. Also where the run is stopped. `launch resume` goes on from it, with any number of stages. off: never."""
    keep_checkpoints: int = 2
    """How many are kept: the newest, and besides them the one at the end of the layers' training."""
    mirror: str | None = field(default=None, metadata={"metavar": "URL"})
    """Also copy the run folder there with every checkpoint, and at the end: s3://bucket/runs, or whatever fsspec has an
    address for. `launch resume URL/RUN` fetches it and goes on, on any machine."""
    stop_timeout: float = 20.0
    """Seconds that a stopped run may take to finish the batches under way and to save a checkpoint. A second Ctrl-C
    does not wait."""
    max_restarts: int = 3
    """How often a run goes on from its last checkpoint by itself after a worker was lost."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    preset: str = field(default="cff-vit", metadata={"flag": None})
    data: DataSettings = field(default_factory=DataSettings)
    net: NetField = field(default_factory=VitSettings)
    method: MethodField = field(default_factory=CffSettings)
    baseline: Baseline | None = None
    """Instead of the method, what it is compared with: the same net and training, cross-entropy on a linear classifier
    behind the last layer. bp: backpropagation. bp-deep: deep supervision, backpropagation from the method's auxiliary
    nets as well. fa: feedback alignment. dfa: direct feedback alignment. drtp: direct random target projection; give it
    a small `lr` where the net has no norm. The net is one piece to them: `executor` becomes serial, and there are no
    readouts."""
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    readout: ReadoutSettings = field(default_factory=ReadoutSettings)
    pipeline: PipelineSettings = field(default_factory=PipelineSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    run_dir: str | None = field(default=None, metadata={"metavar": "FOLDER"})
    """Folder for everything the run leaves. Default: runs/PRESET-DATE-TIME."""
    log: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ("tensorboard",)
    """Where figures go besides metrics.jsonl: one or several of tensorboard, wandb, mlflow and trackio."""
    log_every: float = 0.5
    """Seconds between two looks at the stages."""
    trace: int = field(default=0, metadata={"metavar": "STEPS"})
    """So many steps, from the second epoch on, in RUN/trace.json, for ui.perfetto.dev or chrome://tracing."""
    profile: int = field(default=0, metadata={"metavar": "STEPS"})
    """PyTorch's profiler as well, in so many of the traced steps, the last ones: operators and kernels in
    RUN/trace.json, and flame graphs in RUN/flame.speedscope.json. With `executor` ray."""
    plugins: tuple[str, ...] = field(default=(), metadata={"flag": None})
    """Plug-ins of the run (``pipeline.plugins``)."""

    @property
    def selected_on(self) -> Literal["validation", "test"] | None:
        """The images that choose which epoch's weights are kept, of layers or of readouts. None: the last one's are."""
        if self.train.keep == "last" and not self.readout.judged:
            return None
        return "test" if self.data.validation == "test" else "validation"


_ADAPTER = TypeAdapter(Settings)

# Names that settings had in files of earlier versions, and the groups that hold such settings.
_RENAMED = {
    "wire": "transfer_dtype",
    "head": "readout",
    **{f"head_{name}": f"readout_{name}" for name in ("layers", "norm", "epochs", "keep", "lr")},
}
_RENAMED_IN = ("pipeline", "readout")


def to_dict(settings: Settings) -> dict[str, Any]:
    """Settings as plain JSON values."""
    result: dict[str, Any] = _ADAPTER.dump_python(settings, mode="json")
    return result


def from_dict(values: Any, *, source: str) -> Settings:
    """Settings from JSON values. Raises UserError naming ``source`` and each value that does not fit."""
    if not isinstance(values, dict):
        raise UserError(
            f"{source}: settings are a table, not {reprlib.repr(values)}. Give the config.json of a run folder."
        )
    plugins = values.get("plugins", ())
    for plugin in plugins if isinstance(plugins, (list, tuple)) else ():
        load_plugin(str(plugin))
    values = {name: renamed(group) if name in _RENAMED_IN else group for name, group in renamed(values).items()}
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        if unknown := unknown_names(error):
            raise UserError(
                f"{source}: unknown settings {', '.join(unknown)}. Remove them or use the version that wrote them."
            ) from error
        said = "; ".join(problems(error))
        raise UserError(f"{source}: {said}. Correct it, or use the version that wrote it.") from error


def renamed(values: Any) -> Any:
    """Saved values with settings under the names that they have now."""
    if not isinstance(values, dict):
        return values
    return {_RENAMED.get(name, name): value for name, value in values.items()}


def load(path: Path) -> Settings:
    """Settings saved beside a run (``config.json``), or the ``settings`` part of it."""
    try:
        values = plain_json.read(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file. Give the config.json of a run folder.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}). Give the config.json of a run.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds no settings. Give the config.json of a run folder.")
    return from_dict(values.get("settings", values), source=str(path))
