"""Pictures of runs and trained layers, fit for a paper: each function takes numbers and returns a figure, unseen."""

from __future__ import annotations

from launch.pictures.curves import Panel, curves
from launch.pictures.images import AnchorRow, Example, anchors, attention
from launch.pictures.layers import lines, margins
from launch.pictures.matrices import Classes, confusion, confusions, similarities, similarity
from launch.pictures.plane import scatters
from launch.pictures.style import Vector, write
from launch.pictures.timeline import timeline

__all__ = [
    "AnchorRow",
    "Classes",
    "Example",
    "Panel",
    "Vector",
    "anchors",
    "attention",
    "confusion",
    "confusions",
    "curves",
    "lines",
    "margins",
    "scatters",
    "similarities",
    "similarity",
    "timeline",
    "write",
]
