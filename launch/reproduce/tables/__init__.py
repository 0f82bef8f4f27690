"""Every table that `launch reproduce` knows: a file for each paper, and one for our own. A new one is data alone."""

from __future__ import annotations

from launch.reproduce.table import Table
from launch.reproduce.tables import backprop, cff, cfl, dcl

TABLES: dict[str, Table] = {**cff.TABLES, **cfl.TABLES, **dcl.TABLES, **backprop.TABLES}
"""Every table by its name."""
