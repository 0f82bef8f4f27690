"""Forward-Forward Contrastive Learning: FFCL, its improvement IFFCL, and FFCM, with which Gananath 2024 compares it."""

from __future__ import annotations

from launch.presets.base import Preset
from launch.presets.papers import FFCL, FFCM, IFFCL
from pipeline.config.settings import DataSettings, ReadoutSettings, Settings, TrainSettings
from pipeline.methods import CffSettings, FfclSettings, IffclSettings
from pipeline.nets import MlpSettings

_MNIST = DataSettings(data="mnist")

PRESETS: dict[str, Preset] = {
    "iffcl-mlp-mnist": Preset(
        title="Improved Forward-Forward Contrastive Learning, two MLP[64 2], MNIST",
        source=IFFCL,
        reported="accuracy about 63",
        paper=f"""Test accuracy in {IFFCL.short} (Section 3, Figure 2), MNIST, 784-64-64-10, of either twin:
  about 37 in the beginning, 63 after 30 epochs   --predicts-by second for the other twin
Net, losses, optimizer and epochs are the paper's. It says nothing of the batch, which is ours.""",
        settings=Settings(
            data=_MNIST,
            net=MlpSettings(width=64, depth=2),
            method=IffclSettings(),
            train=TrainSettings(epochs=30, batch_size=128, lr=1e-4, weight_decay=0.0, keep="last"),
            readout=ReadoutSettings(mode="none"),
        ),
    ),
    "ffcl-mlp-mnist": Preset(
        title="Forward-Forward Contrastive Learning, first stage: layer by layer, MLP[500 3], MNIST",
        source=FFCL,
        paper=f"""The method of {FFCL.short}, whose paper is on chest X-rays. Its three stages:
  launch ffcl-mlp-mnist                                   every layer's own contrastive loss, pipelined
  launch ffcl-mlp-mnist --scope global --init-from RUN    that of the whole net, by backpropagation
  launch ffcl-mlp-mnist --baseline bp --init-from RUN     cross-entropy, by backpropagation
RUN is each time the run before. Net, batch, epochs and learning rate are ours.""",
        settings=Settings(
            data=_MNIST,
            net=MlpSettings(width=500, depth=3),
            method=FfclSettings(),
            train=TrainSettings(epochs=20, batch_size=128, lr=1e-3),
            readout=ReadoutSettings(readout_epochs=10, readout_lr=1e-3),
        ),
    ),
    "ffcm-mlp-mnist": Preset(
        title="Forward-Forward with Marginal Contrastive loss (FFCM): CFF+M, then a head, MLP[500 3], MNIST",
        source=FFCM,
        paper=f"""The method of {FFCM.short} as {IFFCL.short} describes it: layers learn by a marginal
contrastive loss, then a classifier on the frozen last one by cross-entropy. Loss and margins are those of
cff-mlp-mnist; images come in one view, as MNIST is not augmented. All settings are ours.""",
        settings=Settings(
            data=_MNIST,
            net=MlpSettings(width=500, depth=3),
            method=CffSettings(views=1, temperature=0.05),
            train=TrainSettings(epochs=60, batch_size=512, lr=1e-3, last_batch="keep"),
            readout=ReadoutSettings(readout_layers="last", readout_epochs=20, readout_keep="best"),
        ),
    ),
}
