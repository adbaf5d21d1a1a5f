"""The attention layers of a group that is on (self- and cross-attention: query, key, value and output projections)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from diffusers.models.attention_processor import Attention as AttentionLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from envs.methods.base import SubsetMethod
from rewards.errors import InputError

_SCOPES: dict[str, tuple[type[Any], ...]] = {
    "layers": (AttentionLayer,),
    "transformers": (AttentionLayer, Transformer2DModel),
}


@dataclass(frozen=True)
class Attention(SubsetMethod):
    """Attention tuning.

    Attributes:
        scope: ``layers``, or ``transformers`` for everything in the transformers around them too, as MemControl's
            attention tuning (arXiv 2405.19458) has it: feed-forward layers, norms and projections.
    """

    scope: str = "layers"
    name: ClassVar[str] = "attention"

    def __post_init__(self) -> None:
        if self.scope not in _SCOPES:
            raise InputError(f"method.options.scope={self.scope}", f"choose among {', '.join(_SCOPES)}")

    @property
    def settings(self) -> dict[str, Any]:
        """Empty for ``layers``: tasks older than the setting keep their ids."""
        return {} if self.scope == "layers" else {"scope": self.scope}

    def learns(self, denoiser: nn.Module, name: str) -> bool:
        """Whether it lies in such a layer."""
        parts, kinds = name.split("."), _SCOPES[self.scope]
        return any(isinstance(denoiser.get_submodule(".".join(parts[:i])), kinds) for i in range(1, len(parts)))
