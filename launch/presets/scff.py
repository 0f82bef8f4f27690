"""Self-contrastive Forward-Forward, as Chen et al. 2025 train it: MNIST, CIFAR-10, STL-10 and FSDD.

Values of each layer are those of the authors' program where it is known to differ from the paper's tables of Appendix
F (docs/methods.md names them). Layers learn one after the other, as in the paper; `--layer-order together` is a
pipeline's way.
"""

from __future__ import annotations

from typing import Literal

from launch.presets.base import Preset
from launch.presets.papers import SCFF
from pipeline.config.settings import AugmentSettings, DataSettings, ReadoutSettings, Settings, TrainSettings
from pipeline.methods import ScffSettings
from pipeline.nets import BirnnSettings, PairedConvSettings, PairedMlpSettings

_HALVED = (0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9)


def _readout(
    dropout: float, *, epochs: int = 50, lr: float = 1e-3, views: Literal["augmented", "plain"] = "augmented"
) -> ReadoutSettings:
    """The linear classifier of the paper's Appendix G, on all layers joined."""
    return ReadoutSettings(
        readout_layers="last",
        readout_norm=False,
        readout_epochs=epochs,
        readout_views=views,
        readout_lr=lr,
        readout_milestones=_HALVED,
        readout_weight_decay=0.0,
        readout_dropout=dropout,
    )


_ORDER = """Layers learn one after the other, --epochs each; all at once, as stages of a pipeline can, with
--layer-order together. A readout of every layer, on it and those before: --readout-layers all. Without labels:
--data FOLDER, with images right in it. Backprop of the whole net, from a run's weights: --baseline bp
--init-from RUN."""

PRESETS: dict[str, Preset] = {
    "scff-mlp-mnist": Preset(
        title="Self-contrastive Forward-Forward, MLP[2000 2], MNIST",
        source=SCFF,
        reported="accuracy 98.7",
        paper=f"""Test accuracy in {SCFF.short} (Section 3.3): 98.7.
{_ORDER}""",
        settings=Settings(
            data=DataSettings(data="mnist", validation="test"),  # which chooses nothing
            net=PairedMlpSettings(width=2000, depth=2, pairing=("anew", "passed"), standardise="all"),
            method=ScffSettings(
                views=2,
                layer_order="in-turn",
                positive_threshold=(4.0, 1.0),
                negative_threshold=(6.0, 1.0),
                goodness_penalty=(1e-4, 0.0),
                layer_lr=(1.0, 2 / 3),
                lr_gamma=(0.9, 0.6),
                gamma_steps=(500, 1500),
            ),
            augment=AugmentSettings(crop_padding=2, flip="off"),
            train=TrainSettings(epochs=20, batch_size=100, lr=3e-3, weight_decay=1e-5, keep="last"),
            readout=_readout(0.2, views="plain"),
        ),
    ),
    "scff-conv-cifar10": Preset(
        title="Self-contrastive Forward-Forward, three convolutions, CIFAR-10",
        source=SCFF,
        reported="accuracy 80.75",
        paper=f"""Test accuracy in {SCFF.short} (Section 3.4): 80.75.
The paper trains the third layer for 25 epochs, the others for 10; here each phase has as many.
{_ORDER}""",
        settings=Settings(
            data=DataSettings(data="cifar10"),
            net=PairedConvSettings(
                channels=(96, 384, 1536),
                kernel=(5, 3, 3),
                pools=("max", "max", "average"),
                pairing=("anew", "passed", "anew"),
                activation=("triangle", "triangle", "relu"),
            ),
            method=ScffSettings(
                layer_order="in-turn",
                positive_threshold=(0.0, 5.0, 6.0),
                negative_threshold=(1.0, 9.0, 10.0),
                goodness_penalty=(1.2e-3, 7e-4, 5e-4),
                layer_lr=(1.0, 0.2, 0.02),
                layer_weight_decay=(1.0, 1.0, 3.0),
                lr_gamma=(0.7, 0.8, 1.0),
                gamma_steps=(1000, 100, 500),
            ),
            augment=AugmentSettings(crop_padding=0, flip="on"),
            train=TrainSettings(epochs=25, batch_size=100, lr=1e-2, weight_decay=1e-4, keep="last"),
            readout=_readout(0.2),
        ),
    ),
    "scff-conv-stl10": Preset(
        title="Self-contrastive Forward-Forward, four convolutions, STL-10",
        source=SCFF,
        reported="accuracy 77.3, fine-tuned 80.13",
        paper=f"""Test accuracy in {SCFF.short} (Section 3.4): 77.3, 80.13 after backprop of the whole net.
The paper's layers also learn from 100,000 images without labels; the data set here has the 5,000 labelled ones.
The paper trains layers for 8, 10, 10 and 30 epochs; here each phase has as many.
{_ORDER}""",
        settings=Settings(
            data=DataSettings(data="stl10"),
            net=PairedConvSettings(
                channels=(96, 384, 1536, 6144),
                kernel=(5, 3, 3, 3),
                pools=("max", "max", "max", "average"),
                pairing=("anew", "passed", "passed", "anew"),
                activation=("triangle", "triangle", "triangle", "relu"),
            ),
            method=ScffSettings(
                layer_order="in-turn",
                positive_threshold=(0.0, 5.0, 6.0, 5.0),
                negative_threshold=(2.0, 8.0, 8.0, 10.0),
                goodness_penalty=(0.0, 1.5e-3, 5e-3, 6e-3),
                layer_lr=(1.0, 3 / 26, 1 / 26, 0.1 / 26),
                layer_weight_decay=(1.0, 0.3, 0.0, 1.0),
                lr_gamma=(0.99, 0.8, 0.99, 1.0),
                gamma_steps=(500,),
                readout_span=2,
            ),
            augment=AugmentSettings(crop_padding=12, flip="on"),
            train=TrainSettings(epochs=30, batch_size=100, lr=2.6e-2, weight_decay=1e-3, keep="last"),
            readout=_readout(0.6, epochs=100),
        ),
    ),
    "scff-birnn-fsdd": Preset(
        title="Self-contrastive Forward-Forward, Bi-RNN[500+500 1], spoken digits (FSDD)",
        source=SCFF,
        reported="accuracy 90.3, untrained 80.7",
        paper=f"""Test accuracy in {SCFF.short} (Section 3.5): 90.3, and 80.7 of a net that has not learned:
--layer-lr 0 --epochs 1. The paper's readout sees one recording a step, at a rate of 5e-4; here it sees 64, at 3e-3.
More layers, a stage each: --depth 2 --layer-order together.""",
        settings=Settings(
            data=DataSettings(data="fsdd"),
            net=BirnnSettings(width=500, depth=1, activation=("relu",)),
            method=ScffSettings(
                layer_order="in-turn",
                positive_threshold=(0.0,),
                negative_threshold=(1.0,),
                goodness_penalty=(7.5e-3,),
                lr_gamma=(0.7,),
                gamma_steps=(33,),  # an epoch
            ),
            augment=AugmentSettings(crop_padding=0, flip="off"),
            train=TrainSettings(epochs=10, batch_size=64, lr=2e-5, weight_decay=0.0, keep="last"),
            readout=_readout(0.0, epochs=10, lr=3e-3),
        ),
    ),
}
