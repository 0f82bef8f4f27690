"""Pictures of trained layers, fit for a paper: each function takes numbers and returns a figure, without a screen."""

from __future__ import annotations

from launch.pictures.images import AnchorRow, Example, anchors, attention
from launch.pictures.layers import lines, margins
from launch.pictures.matrices import Classes, confusion, confusions, similarities, similarity
from launch.pictures.plane import scatters
from launch.pictures.style import write

__all__ = [
    "AnchorRow",
    "Classes",
    "Example",
    "anchors",
    "attention",
    "confusion",
    "confusions",
    "lines",
    "margins",
    "scatters",
    "similarities",
    "similarity",
    "write",
]
