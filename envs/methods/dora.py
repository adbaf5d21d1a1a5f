"""LoRA that learns the magnitude of each output by itself (DoRA, arXiv 2402.09353)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from envs.methods.lora import LoRA


@dataclass(frozen=True)
class DoRA(LoRA):
    """peft's own DoRA, on ``Linear`` and ``Conv2d``; see `LoRA`."""

    name: ClassVar[str] = "dora"
    weight_decomposed: ClassVar[bool] = True
