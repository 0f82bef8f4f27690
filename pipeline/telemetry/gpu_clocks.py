"""Whether a GPU runs slower than it could, and why, as NVIDIA's management library (NVML) tells."""

from __future__ import annotations

from typing import Any

import torch

_REASONS = {
    0x08: "its hardware protects itself",  # nvmlClocksThrottleReasonHwSlowdown
    0x20: "it is too hot",  # …SwThermalSlowdown
    0x40: "it is too hot",  # …HwThermalSlowdown
    0x80: "its power supply asks for less",  # …HwPowerBrakeSlowdown
}
"""Bits of ``nvmlDeviceGetCurrentClocksThrottleReasons`` that somebody should know of. That a GPU keeps to its power
limit (0x04) is what a busy one does."""
_SHADOWED = 0x08  # set beside those that say more


def reasons(bits: int) -> tuple[str, ...]:
    """What these bits say, in words, each once."""
    known = [bit for bit in _REASONS if bits & bit]
    said = [_REASONS[bit] for bit in known if bit != _SHADOWED or known == [_SHADOWED]]
    return tuple(dict.fromkeys(said))


class GpuClocks:
    """Asks for one GPU. Where NVML does not know it or does not answer, nothing slows it down."""

    def __init__(self, device: torch.device) -> None:
        import pynvml  # noqa: PLC0415 (only where there is a GPU)

        self._nvml: Any = pynvml
        self._gpu: Any = None
        try:
            pynvml.nvmlInit()
            # torch counts the GPUs that the process may see, NVML all of them.
            self._gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        except pynvml.NVMLError:  # a driver without NVML, or a part of a GPU (MIG), which has no clock of its own
            return

    def slowed(self) -> tuple[str, ...]:
        """Why it is slowed down now."""
        if self._gpu is None:
            return ()
        try:
            return reasons(int(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._gpu)))
        except self._nvml.NVMLError:  # this kind of GPU does not tell
            return ()
