"""The errors that a person meets, each with what was given, what is allowed and what to do.

Settings stand in their messages by name, in backquotes: "`batch_size` 1: … Give at least 2." Whoever works in Python
reads them as they are; the command line replaces a setting by its flag: "--batch-size 1: …". Flags are its own: no
text in ``pipeline`` or ``workers`` has one. A name that several groups of settings have, each for something else, is
given with its group: "`readout.mode` none: …".
"""

from __future__ import annotations

from typing import Any

_DIGITS = 40  # of a number that a message shows whole


def shortened(value: float) -> str:
    """A number as a message shows it: one of too many digits without its middle."""
    try:
        digits = str(value)
    except ValueError:  # Python prints no integer of more than 4300 digits
        return "with thousands of digits"
    return digits if len(digits) <= _DIGITS else f"{digits[:8]}…{digits[-8:]} ({len(digits):,} digits)"


class UserError(Exception):
    """A mistake in what was asked for. The command line prints the message alone and exits with 2."""


class RunError(Exception):
    """A run that had started and could not go on. The command line prints the message and exits with 1.

    Attributes:
        result: the ``pipeline.runtime.history.RunResult`` with what was learned until then, where anything was.
        kept: what was kept of it and where, in a sentence, by whoever keeps it.
        mends: whether the same may go well another time: a process, a machine or a message was lost, or a bit of its
            memory. A mistake in a method comes again with the same bits.
        repeats: whether it may mend, and more likely comes again: worth another try from a checkpoint alone.
    """

    result: Any = None
    kept: str = ""
    mends: bool = False
    repeats: bool = False

    @property
    def fact(self) -> str:
        """What happened, without advice and without a full stop."""
        return str(self).removesuffix(".")


class ChannelError(RunError):
    """A message that does not fit its channel: wrong header, step out of order, too large."""

    mends = True


class PeerLostError(RunError):
    """The neighbour at the other end of a channel is gone."""

    mends = True


class SharedStateError(RunError):
    """Something is wrong with the state that layers share: a contribution missing, repeated or no number."""


class NonFiniteLossError(RunError):
    """A layer's loss, or its readout's, became NaN or infinite. The weights are those before that step.

    Args:
        layer: 0-based index.
        loss: the value.
        readout: whether it is the readout's.
        stage, epoch, step: where, as far as known (0-based).
    """

    mends = True
    repeats = True

    def __init__(
        self,
        layer: int,
        loss: float,
        *,
        readout: bool = False,
        stage: int | None = None,
        epoch: int | None = None,
        step: int | None = None,
    ) -> None:
        self.layer, self.loss, self.readout, self.step = layer, loss, readout, step
        parts = [] if stage is None else [f"stage {stage + 1}"]
        parts.append(f"layer {layer + 1}: the {'readout' if readout else ''}{' ' if readout else ''}loss is {loss}")
        where = "" if epoch is None or step is None else f" at epoch {epoch + 1}, step {step + 1}"
        advice = "`readout_lr`" if readout else "`lr` or a higher `temperature`"
        self._fact = f"{', '.join(parts)}{where}"
        super().__init__(f"{self._fact}. Training stopped; what was good before is kept. A lower {advice} helps most.")

    @property
    def fact(self) -> str:
        return self._fact

    def at(self, *, stage: int, epoch: int, step: int) -> NonFiniteLossError:
        """The same error with its layer and step; a step that the error already knows stays."""
        known = step if self.step is None else self.step
        return NonFiniteLossError(self.layer, self.loss, readout=self.readout, stage=stage, epoch=epoch, step=known)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class NondeterministicError(RunError):
    """A layer uses an operation whose bits change from run to run.

    Args:
        layer: 0-based index.
        operation: by PyTorch's name of its kernel.
    """

    def __init__(self, layer: int, operation: str) -> None:
        super().__init__(
            f"layer {layer + 1}: {operation} has no kernel that gives the same bits every time. Use another operation, "
            "or `deterministic` warn, with which the run's bits may change from run to run."
        )
        self.layer, self.operation = layer, operation

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class StageFailedError(RunError):
    """A worker (stage or feeder) died or raised; the message names it and its cause."""

    mends = True


class ResourcesError(RunError):
    """The cluster does not have what the run asks for, also after waiting."""


class NoRoomError(ResourcesError):
    """There is no room for so many stages; there may be for fewer."""


def _rebuild(kind: type[Exception], args: tuple[object, ...], values: dict[str, object]) -> Exception:
    """An error whose constructor takes more than its message, again, on the other side of a process boundary."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(values)
    return error
