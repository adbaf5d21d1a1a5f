"""Finds the layer groups of a diffusers UNet: the toggles of a selection.

A scheme is a partition: every parameter of the denoiser lies in exactly one group, so that "all on" is full fine-tuning
and "all off" is the base model. Groups are listed in the order in which the forward pass meets them.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from envs.groups.base import KINDS, NORMS, PARTS, LayerGroup
from envs.groups.block_kinds import block_kinds
from envs.groups.blocks import blocks
from envs.groups.transformers import memcontrol13, transformers
from rewards.errors import InputError

SCHEMES: dict[str, Callable[[nn.Module], tuple[LayerGroup, ...]]] = {
    "blocks": blocks,
    "block_kinds": block_kinds,
    "transformers": transformers,
    "memcontrol13": memcontrol13,
}
"""Every group scheme by name."""

__all__ = ["KINDS", "NORMS", "PARTS", "SCHEMES", "LayerGroup", "find_groups"]


def find_groups(denoiser: nn.Module, scheme: str) -> tuple[LayerGroup, ...]:
    """The groups of a scheme in forward order.

    Args:
        denoiser: A diffusers ``UNet2DConditionModel`` or ``UNet2DModel``.
        scheme: A name in `SCHEMES`.

    Raises:
        InputError: If the scheme is unknown or the denoiser has no layers of the kind that it groups.
    """
    if scheme not in SCHEMES:
        raise InputError(f"groups={scheme} is no group scheme", f"choose among {', '.join(sorted(SCHEMES))}")
    if not all(hasattr(denoiser, part) for part in ("conv_in", "down_blocks", "up_blocks", "conv_out")):
        raise InputError(f"a {type(denoiser).__name__} has no UNet blocks", "use a pipeline with a diffusers UNet")
    groups = SCHEMES[scheme](denoiser)
    covered = sum(group.parameters for group in groups)
    total = sum(parameter.numel() for parameter in denoiser.parameters())
    if covered != total:
        raise ValueError(f"scheme {scheme} covers {covered} of {total} parameters of {type(denoiser).__name__}")
    return groups
