"""The biases and the normalisation layers of a group that is on (BitFit and norm tuning together)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from envs.groups import NORMS
from envs.methods.base import SubsetMethod


@dataclass(frozen=True)
class BiasNorm(SubsetMethod):
    """Biases and norms."""

    name: ClassVar[str] = "bias_norm"

    def learns(self, denoiser: nn.Module, name: str) -> bool:
        """Whether it is a bias or belongs to a norm."""
        owner, _, leaf = name.rpartition(".")
        return leaf == "bias" or isinstance(denoiser.get_submodule(owner), NORMS)
