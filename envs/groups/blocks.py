"""The scheme ``blocks``: each block of the UNet."""

from __future__ import annotations

from torch import nn

from envs.groups.base import LayerGroup, layer_group, most_channels

_STEM = ("conv_in", "time_proj", "time_embedding", "class_embedding", "add_embedding", "encoder_hid_proj")


def blocks(unet: nn.Module) -> tuple[LayerGroup, ...]:
    """Each block of the UNet. What is too small for a toggle of its own goes with its neighbour in the forward pass.

    The input convolution and the embeddings of time and class make one group; the output convolution belongs to the
    last up block. So a UNet of three levels has 8 toggles, few enough to measure all 256 masks.
    """
    levels = len(list(unet.get_submodule("down_blocks").children()))
    drafts = [("input", tuple(name for name in _STEM if _has(unet, name)), "input", 0)]
    drafts += [(f"down_blocks.{i}", (f"down_blocks.{i}",), "down", i) for i in range(levels)]
    if _has(unet, "mid_block"):
        drafts.append(("mid_block", ("mid_block",), "mid", levels - 1))
    for i in range(levels):
        head = tuple(n for n in ("conv_norm_out", "conv_out") if _has(unet, n)) if i == levels - 1 else ()
        drafts.append((f"up_blocks.{i}", (f"up_blocks.{i}", *head), "up", levels - 1 - i))
    return tuple(
        layer_group(
            unet,
            name,
            modules,
            part,
            depth=i / (len(drafts) - 1),
            resolution=0.5**level,
            channels=most_channels(unet.get_submodule(modules[0])),
        )
        for i, (name, modules, part, level) in enumerate(drafts)
    )


def _has(unet: nn.Module, name: str) -> bool:
    return isinstance(getattr(unet, name, None), nn.Module)
