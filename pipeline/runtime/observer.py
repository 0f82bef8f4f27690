"""Who watches a run while it goes on, and may stop it."""

from __future__ import annotations

from pipeline.checkpoints.folder import Manifest
from pipeline.config.run_spec import RunSpec
from pipeline.layers.state import State
from pipeline.runtime.states import RunState
from pipeline.telemetry.reports import PassReport, Status
from pipeline.telemetry.trace import StageTrace, TraceWish


class Observer:
    """Watches a run: every method does nothing here, a subclass gives a body to those that it needs.

    All are called in the thread that asked for the run, between two batches or looks at the workers, so what takes long
    here holds up a serial loop.
    """

    wants_best: bool = False
    """Whether ``improved`` is to be told the weights, which have to be fetched from the workers."""

    def pass_finished(self, report: PassReport) -> None:
        """A stage has finished a pass over a split. Reports of one stage come in order."""

    def progressed(self, statuses: list[Status]) -> None:
        """Where every stage is, first stage first: after each batch of a serial loop, else some times a second."""

    def interrupted(self) -> bool:
        """Whether the run should stop now. What it learned until then is kept. Looked at before every batch."""
        return False

    def improved(self, epoch: int, weights: State) -> None:
        """An epoch's validation was the best so far, with these weights (and readouts, where they learn with them)."""

    def checkpointed(self, manifest: Manifest) -> None:
        """A checkpoint is whole."""

    def asked_to_save(self) -> bool:
        """Whether a checkpoint is to be saved soon, besides those that are due. True once for each wish."""
        return False

    def asked_to_trace(self) -> TraceWish | None:
        """The training steps that are to be traced next, besides those that settings name. Told once for each wish."""
        return None

    def traced(self, trace: StageTrace) -> None:
        """A stage has come to the end of a trace."""

    def entered(self, state: RunState) -> None:
        """What the run is doing from now on (``pipeline.runtime.states``); it may have done so before."""

    def notified(self, sentence: str) -> None:
        """Why nothing happens, where a person should know, such as that devices are waited for."""

    def noted(self, title: str, text: str) -> None:
        """What helps to find a failure's cause and is too long for a sentence, such as a worker's stacks."""

    def divided(self, spec: RunSpec) -> None:
        """The run goes on in other stages, those of ``spec``, after a failure."""

    def waits_for(self, what: str) -> None:
        """What the start of the run waits for now, such as "joining neighbours"."""
