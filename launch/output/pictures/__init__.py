"""Pictures of runs and trained layers, fit for a paper: each function takes numbers and returns a figure, unseen."""

from __future__ import annotations

from launch.output.pictures.curves import Panel, curves
from launch.output.pictures.images import AnchorRow, Example, anchors, attention
from launch.output.pictures.layers import goodness, lines, margins
from launch.output.pictures.matrices import Classes, confusion, confusions, similarities, similarity
from launch.output.pictures.plane import scatters
from launch.output.pictures.style import Vector, write
from launch.output.pictures.timeline import timeline
from launch.output.pictures.trace import PARTS, TracedStage, trace

__all__ = [
    "PARTS",
    "AnchorRow",
    "Classes",
    "Example",
    "Panel",
    "TracedStage",
    "Vector",
    "anchors",
    "attention",
    "confusion",
    "confusions",
    "curves",
    "goodness",
    "lines",
    "margins",
    "scatters",
    "similarities",
    "similarity",
    "timeline",
    "trace",
    "write",
]
