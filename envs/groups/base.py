"""What a toggle covers, and which kinds of layers there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

PARTS = ("input", "down", "mid", "up")
"""Where in a UNet a group lies."""

KINDS = ("attention", "feed_forward", "resnet", "norm", "other")
"""What a parameter belongs to; see `layer_kinds`."""

NORMS = (nn.GroupNorm, nn.LayerNorm, _BatchNorm, nn.RMSNorm)
"""The classes of normalisation layers."""

_BODY = ("down_blocks", "mid_block", "up_blocks", "conv_norm_out", "conv_out")


@dataclass(frozen=True)
class LayerGroup:
    """One toggle: which modules of the denoiser it covers, and what a policy may know about it.

    Attributes:
        name: Unique in its scheme.
        modules: Dotted names of the denoiser's modules covered, with all their descendants.
        part: One of `PARTS`.
        depth: Position in the forward pass, 0 first to 1 last.
        resolution: Height of its feature maps as a share of the denoiser's input, in (0, 1].
        channels: The most that a convolution of its puts out; of a transformer's blocks, the transformer's; of a kind
            of a block's layers, the block's.
        parameters: Numbers in its modules, whether or not a method can train them.
        kinds: Share of its parameters in each of `KINDS`, summing to 1.
        excluded: Dotted names of modules inside ``modules`` that other groups cover.
    """

    name: str
    modules: tuple[str, ...]
    part: str
    depth: float
    resolution: float
    channels: int
    parameters: int
    kinds: tuple[float, ...] = tuple(float(kind == "other") for kind in KINDS)
    excluded: tuple[str, ...] = ()

    def parameters_in(self, denoiser: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """``(dotted name in the denoiser, parameter)`` of everything covered."""
        for prefix in self.modules:
            # A module may lie inside one that is excluded: norms in a feed-forward layer in a transformer.
            holes = tuple(f"{name}." for name in self.excluded if name.startswith(f"{prefix}."))
            for name, parameter in denoiser.get_submodule(prefix).named_parameters(prefix=prefix):
                if not name.startswith(holes):
                    yield name, parameter


def layer_group(
    unet: nn.Module,
    name: str,
    modules: tuple[str, ...],
    part: str,
    *,
    depth: float,
    resolution: float,
    channels: int,
    excluded: tuple[str, ...] = (),
) -> LayerGroup:
    """A group with its parameters counted. See `LayerGroup`."""
    covering = LayerGroup(name, modules, part, depth, resolution, channels, 0, excluded=excluded)
    kinds, counts = layer_kinds(unet), dict.fromkeys(KINDS, 0)
    for parameter_name, parameter in covering.parameters_in(unet):
        counts[kinds[parameter_name.rpartition(".")[0]]] += parameter.numel()
    total = sum(counts.values())
    return replace(covering, parameters=total, kinds=tuple(count / max(total, 1) for count in counts.values()))


def layer_kinds(unet: nn.Module) -> dict[str, str]:
    """Which of `KINDS` each module's own parameters are, by its dotted name.

    A norm is a norm wherever it lies. A transformer's projections in and out are attention; the convolutions that
    sample up and down, and the one that puts out the prediction, are convolutions like those of residual blocks. The
    input convolution and the embeddings are ``other``.
    """
    kinds = {"": "other"}
    for name, module in unet.named_modules():
        if name:
            parent = name.rpartition(".")[0]
            kinds[name] = _kind(module, "resnet" if name in _BODY else kinds[parent])
    return kinds


def _kind(module: nn.Module, around: str) -> str:
    if isinstance(module, NORMS):
        return "norm"
    if isinstance(module, FeedForward):
        return "feed_forward"
    if isinstance(module, (Attention, Transformer2DModel)):
        return "attention"
    return around


def most_channels(*modules: nn.Module) -> int:
    """The most that a convolution inside puts out."""
    return max(m.out_channels for module in modules for m in module.modules() if isinstance(m, nn.Conv2d))
