"""Readers of published data sets and of people's own folders: each gives uint8 images with labels, split by split."""
