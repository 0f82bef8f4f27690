"""A run without the command line: train, look at the history, predict.

python examples/train_from_python.py
"""

from __future__ import annotations

import torch

from launch import train
from pipeline.kind import Kind

run = train("cff-vit", data="digits", stages=2, epochs=3, readout_epochs=2, executor="threads")

for epoch in run.history.epochs(Kind.VALIDATE):
    losses = [f"{layer.loss:.2f}" for layer in run.history.layers(Kind.VALIDATE, epoch) or []]
    print(f"epoch {epoch + 1}: validation loss of layers {' '.join(losses)}")

images = torch.rand(4, *run.network.shape)  # yours: (N, channels, H, W), uint8 or float in [0, 1]
names = [run.network.classes[label] for label in run.network(images).argmax(dim=1)]
print(f"{run!r}: four random images are taken for {', '.join(names)}")
