"""How a backbone computes: precision, gradient checkpointing, compilation."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Execution:
    """What trades exactness, memory and speed for each other; the defaults are exact.

    Attributes:
        precision: Of the denoiser's products and convolutions, by autocast. Its weights, gradients and optimizer stay
            in fp32, and so do the autoencoder and the text encoder.
        gradient_checkpointing: Computes activations a second time in the backward pass instead of keeping them.
        compile: Trains through ``torch.compile``.
    """

    precision: Precision = "fp32"
    gradient_checkpointing: bool = False
    compile: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """What departs from the defaults, as JSON values: what a task's options hold under ``backbone``."""
        default = asdict(Execution())
        return {name: value for name, value in asdict(self).items() if value != default[name]}

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context of a forward pass. In fp32 it leaves a caller's own autocast alone."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(device.type, _DTYPES[self.precision])
