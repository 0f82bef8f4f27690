"""Whether the first stage keeps the decoded images on its device (`data_on`)."""

from __future__ import annotations

import torch

from pipeline.config.run_spec import RunSpec
from pipeline.data.kept import KeptImages
from pipeline.errors import RunError
from pipeline.telemetry.memory import free_bytes

_SHARE = 0.25  # of the device's free memory, the most that images may take: the layers need the rest
_GIB = 1 << 30


def kept_images(spec: RunSpec, device: torch.device) -> tuple[KeptImages | None, tuple[str, ...]]:
    """Room for the images of a run on the first stage's device, or None where they stay on the host; and sentences for
    people, where somebody should know.

    Raises:
        RunError: the run asks for the device, which has no room for them.
    """
    if not spec.wants_images_on_device:
        return None, ()
    size, free = spec.image_bytes, free_bytes(device)
    if size <= _SHARE * free:
        return KeptImages({"train": spec.num_images[0], "test": spec.num_images[1]}, spec.shape, device), ()
    what = (
        f"decoded images take {size / _GIB:,.2f} GiB, more than a quarter of the {free / _GIB:,.2f} GiB that are free "
        f"on {device}"
    )
    if spec.settings.pipeline.data_on == "device":
        raise RunError(f"`data_on` device: the {what}. Use `data_on` auto or host.")
    return None, (f"Images stay on the host: {what}.",)
