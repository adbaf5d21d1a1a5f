"""A guard against a crash of torch's GroupNorm."""

from __future__ import annotations

from torch import nn


def guard_group_norms(module: nn.Module) -> None:
    """Makes the input of every GroupNorm contiguous.

    The CPU backward of GroupNorm in torch 2.13.0 segfaults when its input is channels_last and needs no gradient while
    its weight or bias does: what a mask search meets whenever a group in the middle of the network learns alone.
    """
    for layer in module.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
