"""Every parameter of a group that is on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from envs.methods.base import SubsetMethod


@dataclass(frozen=True)
class Full(SubsetMethod):
    """Full fine-tuning."""

    name: ClassVar[str] = "full"

    def learns(self, denoiser: nn.Module, name: str) -> bool:
        """Everything."""
        return True
