"""The attention layers of a group that is on (self- and cross-attention: query, key, value and output projections)."""

from __future__ import annotations

from diffusers.models.attention_processor import Attention
from torch import nn

from envs.methods.base import subset_method


def _in_attention(denoiser: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    parts = name.split(".")
    return any(isinstance(denoiser.get_submodule(".".join(parts[:i])), Attention) for i in range(1, len(parts)))


attention = subset_method("attention", _in_attention)
