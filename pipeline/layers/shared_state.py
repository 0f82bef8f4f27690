"""The state that layers share, with its versions: who reads which, and when the next one is made.

What it is and how contributions change it says the method (``pipeline.methods.shared_state``). Which version a layer
reads is decided by ``pipeline.versions``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from pipeline.errors import PeerLostError, SharedStateError
from pipeline.versions import Update

if TYPE_CHECKING:
    from pipeline.config.run_spec import RunSpec
    from pipeline.methods import BatchPosition

VALUES = "embeddings.values"
"""Name of the state among a run's weights; label embeddings were the first."""


class SharedStateAccess(Protocol):
    """Where a layer gets the shared state from, and sends its contributions to."""

    def read(self, layer: int, where: BatchPosition) -> Tensor:
        """The state that the layer reads at this position, on the CPU or its stage's device, and not to be changed."""
        ...

    def push(self, layer: int, step: int, contribution: Tensor) -> None:
        """Takes a contributing layer's contribution of a training step, as large as the state."""
        ...

    def freeze(self, epoch: int) -> None:
        """From now on every layer reads the state of that epoch's end, in the readouts' training and the test."""
        ...

    def checkpoint(self, key: str, step: int) -> None:
        """A stage is between two training steps, the second of which is ``step``, and saves what it has.

        Every stage says so, before its layers contribute to that step.
        """
        ...


Saved = Callable[[str, dict[str, Tensor]], None]
"""Takes a checkpoint's key, and the state as of that checkpoint."""


class Follower(Protocol):
    """Gets every version as soon as it is made, from the thread that makes it."""

    def tell(self, number: int, values: Tensor) -> None:
        """A version and its values, which nobody changes. Not to wait: nobody can use the state meanwhile."""
        ...

    def break_off(self) -> None:
        """No more versions come."""
        ...


class VersionedState:
    """A shared state and its versions, on the CPU whatever the layers are on.

    Contributions may come in any order and from any thread; a version is made when all of its updates' are there, and
    they count in the order that ``Versions.updates`` names. All waiting ends with ``break_off``.

    Implements ``SharedStateAccess`` for one process.

    Args:
        saved: gets the state as of every checkpoint, once all contributions before it are there; they may still be
            under way when a stage speaks of it. In the thread that brings the last of them.
    """

    def __init__(self, spec: RunSpec, saved: Saved | None = None) -> None:
        self._state = spec.shared_state()
        self._schedule, self._title = self._state.versions, self._state.title
        assert self._schedule == spec.shared_versions, "a method names its versions once"
        self._timeout = spec.settings.pipeline.stall_timeout
        self._version = 0
        self._versions = {0: self._state.values.detach().clone()}
        self._pending: dict[int, dict[Update, Tensor]] = {}
        self._ends: dict[int, Tensor] = {}  # the state at the ends of epochs that may turn out the best
        self._frozen: Tensor | None = None
        self._changed = threading.Condition()
        self._followers: list[Follower] = []
        self._broken = False
        self._saved = saved
        self._due: dict[str, int] = {}  # checkpoints that are to be saved, and the training step that comes after
        self._last_due: str | None = None

    @property
    def shape(self) -> torch.Size:
        return self._state.values.shape

    def push(self, layer: int, step: int, contribution: Tensor) -> None:
        """Takes a contributing layer's contribution of a training step.

        Raises:
            SharedStateError: the layer does not contribute, has contributed to this step before, is further ahead than
                versions let it be, or sent something that does not fit the state.
        """
        who = f"{self._title}: layer {layer + 1}, step {step + 1}"
        contribution = contribution.detach().to("cpu", torch.float32, copy=True)
        with self._changed:
            if layer not in self._schedule.contributors:
                raise SharedStateError(f"{who}: mode {self._schedule.mode} takes no gradient of it")
            changed = self._schedule.changed_by(layer, step)
            if changed < self._version or (layer, step) in self._pending.get(changed, ()):
                raise SharedStateError(f"{who}: its gradient came twice")
            if changed > self._version + self._schedule.num_layers + self._schedule.lag:
                raise SharedStateError(f"{who}: {self._lacking()}; one was lost")
            if contribution.shape != self.shape:
                raise SharedStateError(
                    f"{who}: a gradient of shape {tuple(contribution.shape)} for embeddings of {tuple(self.shape)}"
                )
            if not torch.isfinite(contribution).all():
                raise SharedStateError(f"{who}: the gradient is not a number. {self._state.advice}")
            self._pending.setdefault(changed, {})[layer, step] = contribution
            while len(self._pending.get(self._version, ())) == len(self._schedule.updates(self._version)):
                self._save_due()  # the next version may hold what comes after a checkpoint
                self._advance()
            self._save_due()
            self._changed.notify_all()

    def checkpoint(self, key: str, step: int) -> None:
        with self._changed:
            if self._saved is None or key == self._last_due:  # another stage has said so
                return
            self._due[key], self._last_due = step, key
            self._save_due()

    def _save_due(self) -> None:
        """Hands over the state as of the checkpoints before which nothing is missing."""
        for key, step in list(self._due.items()):
            if self._version != self._schedule.complete(step):
                continue
            there = self._pending.get(self._version, {})
            coming = self._schedule.updates(self._version) if self._schedule.contributors else ()
            before = [update for update in coming if update[1] < step]
            if any(update not in there for update in before):
                continue  # the last contributions are under way
            del self._due[key]
            assert self._saved is not None, "nothing is due otherwise"
            self._saved(key, self._as_of({update: there[update] for update in before}))

    def _as_of(self, pending: Mapping[Update, Tensor]) -> dict[str, Tensor]:
        """All that the state consists of, with these contributions to its next version. Nothing in it changes later."""
        return {
            "version": torch.tensor(self._version),
            **{f"versions.{number}": values for number, values in self._versions.items()},
            **{f"ends.{epoch}": values for epoch, values in self._ends.items()},
            **{f"pending.{layer}.{step}": contribution for (layer, step), contribution in pending.items()},
            **{f"optimizer.{name}": value.clone() for name, value in self._state.state().items()},
        }

    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Goes on from what was saved with a checkpoint."""
        kinds: dict[str, dict[str, Tensor]] = {"versions": {}, "ends": {}, "pending": {}, "optimizer": {}}
        for name, value in saved.items():
            kind, _, rest = name.partition(".")
            if kind in kinds:
                kinds[kind][rest] = value
        with self._changed:
            self._version = int(saved["version"])
            self._versions = {int(number): values for number, values in kinds["versions"].items()}
            self._ends = {int(epoch): values for epoch, values in kinds["ends"].items()}
            self._state.load(self._versions[self._version], kinds["optimizer"])
            for name, contribution in kinds["pending"].items():
                layer, step = (int(number) for number in name.split("."))
                self._pending.setdefault(self._schedule.changed_by(layer, step), {})[layer, step] = contribution
            self._changed.notify_all()

    def _advance(self) -> None:
        """Makes the next version. All contributions that it takes are there."""
        contributions, updates = self._pending.pop(self._version), self._schedule.updates(self._version)
        self._state.update(contributions, updates)
        values = self._state.values.detach()
        if not torch.isfinite(values).all():
            raise SharedStateError(f"{self._title}: version {self._version + 1} is not a number. {self._state.advice}")
        self._version += 1
        self._versions[self._version] = values.clone()
        for follower in self._followers:
            follower.tell(self._version, self._versions[self._version])
        epoch = updates[-1][1] // self._schedule.steps_per_epoch
        if self._version == self._schedule.end(epoch):
            self._ends[epoch] = self._versions[self._version]
        # Every contributor is through with the step before. A layer that contributes nothing may have sent that step's
        # activations on and read its version only now: it reads none older than newest − L − lag.
        self._versions.pop(self._version - self._schedule.most_ahead, None)

    def _lacking(self) -> str:
        """Whose contributions the next version waits for."""
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
        """A version of the state, when it is there.

        Raises:
            PeerLostError: it does not come within the stall timeout, or the run ended meanwhile.
        """
        with self._changed:
            self._await(version)
            return self._versions[version]

    def follow(self, version: int, follower: Follower) -> None:
        """Has it get this version and all that follow, in order."""
        with self._changed:
            for number, values in sorted(self._versions.items()):
                if number >= version:
                    follower.tell(number, values)
            self._followers.append(follower)

    def lacking(self) -> str:
        """Whose contributions the next version waits for, in words."""
        with self._changed:
            return self._lacking()

    def _await(self, version: int) -> None:
        self._changed.wait_for(lambda: self._broken or self._version >= version, self._timeout)
        if self._version >= version:
            return
        if self._broken:
            raise PeerLostError(f"{self._title}: the run has ended")
        raise PeerLostError(
            f"{self._title}: version {version} did not come within {self._timeout:g} s; {self._lacking()}"
        )

    def candidate(self, epoch: int) -> Tensor:
        """The state at the end of an epoch, when it is there. Errors as ``wait_for``."""
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
        """The frozen state, or the newest version."""
        with self._changed:
            values = self._frozen if self._frozen is not None else self._versions[self._version]
            return {VALUES: values.clone()}

    def state(self) -> dict[str, Tensor]:
        """The newest version, and what the next update depends on beside it."""
        with self._changed:
            state = {f"embeddings.optimizer.{name}": value.clone() for name, value in self._state.state().items()}
            return {VALUES: self._versions[self._version].clone()} | state

    def break_off(self) -> None:
        """Ends all waiting, now and later."""
        with self._changed:
            self._broken = True
            for follower in self._followers:
                follower.break_off()
            self._followers.clear()
            self._changed.notify_all()


class FixedState:
    """A state that no longer changes, such as a trained run's. Implements ``SharedStateAccess`` for evaluation."""

    def __init__(self, values: Tensor) -> None:
        self._values = values

    def read(self, layer: int, where: BatchPosition) -> Tensor:
        return self._values

    def push(self, layer: int, step: int, contribution: Tensor) -> None:
        raise SharedStateError("the state of a trained run takes no contribution")

    def freeze(self, epoch: int) -> None:
        raise SharedStateError("the state of a trained run has no epochs")

    def checkpoint(self, key: str, step: int) -> None:
        raise SharedStateError("the state of a trained run has no checkpoints")
