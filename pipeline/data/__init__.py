"""Images: where they come from, their shards, the batches of a run, and their augmentation."""

from __future__ import annotations

from pipeline.data import known

__all__ = ["known"]  # imported so that its data sets are registered
