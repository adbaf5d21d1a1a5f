"""The biases and the normalisation layers of a group that is on (BitFit and norm tuning together)."""

from __future__ import annotations

from torch import nn

from envs.methods.base import subset_method

_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.RMSNorm)


def _is_bias_or_norm(denoiser: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    owner, _, leaf = name.rpartition(".")
    return leaf == "bias" or isinstance(denoiser.get_submodule(owner), _NORMS)


bias_norm = subset_method("bias_norm", _is_bias_or_norm)
