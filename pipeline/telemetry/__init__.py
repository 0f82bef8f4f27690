"""Clocks, reports and memory: what is measured, below everything that is measured."""
