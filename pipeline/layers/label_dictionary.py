"""The label dictionary: an embedding for each class, which layers share, and who may change it when.

Which version of it a layer reads is settled by ``pipeline.versions``.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from pipeline import rng
from pipeline.errors import EmbeddingError, PeerLostError, UserError
from pipeline.methods.adamw import AdamW
from pipeline.versions import Update

if TYPE_CHECKING:
    from pipeline.config.run_spec import RunSpec
    from pipeline.methods import BatchPosition

VALUES = "embeddings.values"
"""Name of the dictionary (Z, C_D) among a run's weights."""


class EmbeddingSource(Protocol):
    """Where a layer gets the dictionary from, and sends its gradients to."""

    def read(self, layer: int, where: BatchPosition) -> Tensor:
        """The dictionary (Z, C_D) that the layer reads at this place, on the CPU and not to be changed."""
        ...

    def push(self, layer: int, step: int, gradient: Tensor) -> None:
        """Takes a contributing layer's gradient (Z, C_D) of a training step."""
        ...

    def freeze(self, epoch: int) -> None:
        """From now on every layer reads the dictionary of that epoch's end, in the readouts' training and the test."""
        ...


class LabelEmbeddings:
    """The dictionary, its optimizer and its versions, on the CPU whatever the layers are on.

    Version k+1 is version k after the updates that ``Versions.updates`` names: one optimizer's step on their combined
    gradient, or in turn a step of each layer's own optimizer.

    Gradients may come in any order and from any thread; a version is made when all of its updates' are there, and they
    are added, or applied, in the order that is named. All waiting ends with ``break_off``.

    Implements ``EmbeddingSource`` for one process.
    """

    def __init__(self, spec: RunSpec) -> None:
        method, train = spec.settings.method, spec.settings.train
        settings = method.dictionary()
        assert settings is not None and settings.shared, "asked for only where layers share one"
        assert settings.embedding_width != "auto", "resolve() settles the width"
        self._settings, self._train = settings, train
        self._schedule = settings.versions(spec.num_layers, spec.steps_per_epoch)
        self._timeout = spec.settings.pipeline.stall_timeout
        generator = torch.Generator().manual_seed(rng.torch_seed(train.seed, "init-embeddings"))
        shape = (len(spec.classes), settings.embedding_width)
        self._values = torch.nn.Parameter(torch.randn(shape, generator=generator))
        self._lr = train.lr if settings.embedding_lr == "lr" else settings.embedding_lr
        in_turn = settings.embedding_mode == "in-turn"
        self._optimizers = {
            prefix: AdamW([self._values], lr=self._lr, weight_decay=train.weight_decay, fused=True)
            for prefix in ([f"layers.{layer}." for layer in range(spec.num_layers)] if in_turn else [""])
        }
        self._version = 0
        self._versions = {0: self._values.detach().clone()}
        self._pending: dict[int, dict[Update, Tensor]] = {}
        self._ends: dict[int, Tensor] = {}  # the dictionary at the ends of epochs that may turn out the best
        self._frozen: Tensor | None = None
        self._changed = threading.Condition()
        self._broken = False

    @property
    def shape(self) -> torch.Size:
        return self._values.shape

    def push(self, layer: int, step: int, gradient: Tensor) -> None:
        """Takes a contributing layer's gradient (Z, C_D) of a training step.

        Raises:
            EmbeddingError: the layer does not contribute, has contributed to this step before, is further ahead than
                versions let it be, or sent something that is no gradient of this dictionary.
        """
        who = f"label embeddings: layer {layer + 1}, step {step + 1}"
        gradient = gradient.detach().to("cpu", torch.float32, copy=True)
        with self._changed:
            if layer not in self._schedule.contributors:
                raise EmbeddingError(f"{who}: `embedding_mode` {self._settings.embedding_mode} takes no gradient of it")
            changed = self._schedule.changed_by(layer, step)
            if changed < self._version or (layer, step) in self._pending.get(changed, ()):
                raise EmbeddingError(f"{who}: its gradient came twice")
            if changed > self._version + self._schedule.num_layers + self._schedule.lag:
                raise EmbeddingError(f"{who}: {self._lacking()}; one was lost")
            if gradient.shape != self._values.shape:
                raise EmbeddingError(
                    f"{who}: a gradient of shape {tuple(gradient.shape)} for embeddings of {tuple(self._values.shape)}"
                )
            if not torch.isfinite(gradient).all():
                raise EmbeddingError(f"{who}: the gradient is not a number. A lower `lr` or `embedding_lr` helps most.")
            self._pending.setdefault(changed, {})[layer, step] = gradient
            while len(self._pending.get(self._version, ())) == len(self._schedule.updates(self._version)):
                self._advance()
            self._changed.notify_all()

    def _advance(self) -> None:
        """Makes the next version. All gradients that it takes are there."""
        gradients, updates = self._pending.pop(self._version), self._schedule.updates(self._version)
        if self._settings.embedding_mode == "in-turn":
            for layer, step in updates:
                self._update(f"layers.{layer}.", gradients[layer, step], step)
        else:
            combined = torch.zeros_like(self._values)
            for update in updates:  # in this order, whatever the one in which they came
                combined += gradients[update]
            if self._settings.embedding_mode == "shared-mean":
                combined /= len(updates)
            self._update("", combined, self._version)
        if not torch.isfinite(self._values).all():
            raise EmbeddingError(
                f"label embeddings: version {self._version + 1} is not a number. A lower `lr` or `embedding_lr` helps."
            )
        self._version += 1
        self._versions[self._version] = self._values.detach().clone()
        epoch = updates[-1][1] // self._schedule.steps_per_epoch
        if self._version == self._schedule.end(epoch):
            self._ends[epoch] = self._versions[self._version]
        # Every contributor is through with the step before. A layer that contributes nothing may have sent that step's
        # activations on and read its version only now: it reads none older than newest − L − lag.
        self._versions.pop(self._version - self._schedule.num_layers - self._schedule.lag - 1, None)

    def _update(self, prefix: str, gradient: Tensor, step: int) -> None:
        optimizer = self._optimizers[prefix]
        self._values.grad = gradient
        optimizer.param_groups[0]["lr"] = self._lr * self._train.lr_factor(step // self._schedule.steps_per_epoch)
        optimizer.step()

    def _lacking(self) -> str:
        """Whose gradients the next version waits for."""
        there = self._pending.get(self._version, ())
        missing = [(layer, step) for layer, step in self._schedule.updates(self._version) if (layer, step) not in there]
        step = missing[0][1]
        layers = ", ".join(str(layer + 1) for layer, of in missing if of == step)
        return f"step {step + 1} lacks the gradient of layer {layers}"

    def read(self, layer: int, where: BatchPosition) -> Tensor:
        if self._frozen is not None and not where.training:
            return self._frozen
        return self.wait_for(self._schedule.read(layer, where.step, training=where.training))

    def wait_for(self, version: int) -> Tensor:
        """A version of the dictionary, when it is there.

        Raises:
            EmbeddingError: it does not come within the stall timeout.
            PeerLostError: the run ended meanwhile.
        """
        with self._changed:
            self._await(version)
            return self._versions[version]

    def wait_from(self, version: int) -> dict[int, Tensor]:
        """This version, when it is there, and all that follow it. Errors as ``wait_for``."""
        with self._changed:
            self._await(version)
            return {number: values for number, values in self._versions.items() if number >= version}

    def _await(self, version: int) -> None:
        self._changed.wait_for(lambda: self._broken or self._version >= version, self._timeout)
        if self._version >= version:
            return
        if self._broken:
            raise PeerLostError("label embeddings: the run has ended")
        raise EmbeddingError(
            f"label embeddings: version {version} did not come within {self._timeout:g} s; {self._lacking()}"
        )

    def candidate(self, epoch: int) -> Tensor:
        """The dictionary at the end of an epoch, when it is there. Errors as ``wait_for``."""
        if not self._schedule.contributors:
            return self.wait_for(0)
        with self._changed:
            self._await(self._schedule.end(epoch))
            return self._ends[epoch]

    def candidate_weights(self, epoch: int) -> dict[str, Tensor]:
        """``candidate`` under its name among a run's weights."""
        return {VALUES: self.candidate(epoch).clone()}

    def keep_only(self, best: int, upto: int) -> None:
        """Of the epochs' ends up to ``upto``, keeps that of epoch ``best`` alone."""
        with self._changed:
            self._ends = {epoch: values for epoch, values in self._ends.items() if epoch > upto or epoch == best}

    def freeze(self, epoch: int) -> None:
        self._frozen = self.candidate(epoch)

    def weights(self) -> dict[str, Tensor]:
        """The frozen dictionary, or the newest version."""
        with self._changed:
            values = self._frozen if self._frozen is not None else self._versions[self._version]
            return {VALUES: values.clone()}

    def state(self) -> dict[str, Tensor]:
        """The newest version and the optimizer's state."""
        with self._changed:
            state = {
                f"embeddings.optimizer.{prefix}{name}": value.clone()
                for prefix, optimizer in self._optimizers.items()
                for name, value in optimizer.state.get(self._values, {}).items()
            }
            return {VALUES: self._versions[self._version].clone()} | state

    def break_off(self) -> None:
        """Ends all waiting, now and later."""
        with self._changed:
            self._broken = True
            self._changed.notify_all()


class FixedEmbeddings:
    """A dictionary that no longer changes, such as a trained run's. Implements ``EmbeddingSource`` for evaluation.

    Args:
        values: (Z, C_D).
        num_classes: classes of the data it is used on.

    Raises:
        UserError: it has embeddings of more or fewer classes.
    """

    def __init__(self, values: Tensor, num_classes: int) -> None:
        if len(values) != num_classes:
            raise UserError(
                f"The dictionary has label embeddings of {len(values)} classes, the data has {num_classes}. "
                "Use the data set that the run learned from."
            )
        self._values = values

    def read(self, layer: int, where: BatchPosition) -> Tensor:
        return self._values

    def push(self, layer: int, step: int, gradient: Tensor) -> None:
        raise EmbeddingError("a trained dictionary takes no gradient")

    def freeze(self, epoch: int) -> None:
        raise EmbeddingError("a trained dictionary has no epochs")
