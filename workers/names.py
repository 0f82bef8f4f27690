"""What the workers of a run are called: by the actors' names in Ray, and by people."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.run_spec import RunSpec


@dataclass(frozen=True, order=True)
class StageName:
    """Which stage's worker, and which of its replicas. Both 0-based; there is one replica of each stage."""

    stage: int
    replica: int = 0

    def actor(self, run: str) -> str:
        """Its name in Ray, for a run that is called so there."""
        return f"localpipe-{run}-stage-{self.stage + 1}-replica-{self.replica + 1}"

    def described(self, spec: RunSpec) -> str:
        """Its name for people: "stage 1 (layers 1-2)"."""
        return f"stage {self.stage + 1} ({self.holds(spec)})"

    def holds(self, spec: RunSpec) -> str:
        """What is lost with it: "layers 1-2"."""
        layers = spec.stages[self.stage]
        return f"layer {layers[0] + 1}" if len(layers) == 1 else f"layers {layers[0] + 1}-{layers[-1] + 1}"
