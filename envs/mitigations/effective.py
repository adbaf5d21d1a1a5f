"""The weight that a layer computes with, whatever method was trained in it, and setting entries of it to zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.utils import parametrize

from envs.methods.importance import SparseDifference

KINDS = ("feed_forward", "feed_forward_in", "attention_keys", "attention_values", "convolutions", "all")
"""Which layers: the second or the first of each feed-forward part, projections of attentions, or by their operation."""


def layers_of(denoiser: nn.Module, kind: str) -> dict[str, nn.Module]:
    """Linear layers and convolutions by dotted name, each with what a method wrapped around it.

    Args:
        denoiser: With or without a method.
        kind: One of `KINDS`.
    """
    every = dict(_layers(denoiser))
    if kind == "all":
        return every
    if kind == "convolutions":
        return {name: layer for name, layer in every.items() if isinstance(base_of(layer), nn.Conv2d)}
    wanted = set()
    for name, module in denoiser.named_modules():
        if isinstance(module, FeedForward) and kind.startswith("feed_forward"):
            inside = [other for other in every if other.startswith(f"{name}.")]
            wanted.add(inside[0] if kind == "feed_forward_in" else inside[-1])
        elif isinstance(module, Attention) and kind.startswith("attention"):
            wanted.add(f"{name}.to_k" if kind == "attention_keys" else f"{name}.to_v")
    return {name: layer for name, layer in every.items() if name in wanted}


def base_of(layer: nn.Module) -> nn.Module:
    """The layer that peft has wrapped, or itself."""
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def effective_weight(layer: nn.Module) -> Tensor:
    """A copy of the weight that the layer computes with, adapters merged."""
    with _merged(layer) as base:
        assert isinstance(base.weight, Tensor)
        return base.weight.detach().clone()


@contextmanager
def zeroed(layers: Mapping[str, nn.Module], masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, entries of effective weights are zero; on exit everything is what it was before, to the last bit.

    Adapters of a layer of which nothing is set to zero stay as they are, unmerged.

    Args:
        layers: By name.
        masks: Bool, of the weights' shapes, by name: true where zero.
    """
    with ExitStack() as stack:
        for name, mask in masks.items():
            if bool(mask.any()):
                base = stack.enter_context(_merged(layers[name]))
                stack.enter_context(_cut(base, mask))
        yield


@contextmanager
def _merged(layer: nn.Module) -> Iterator[nn.Module]:
    """Inside, the base layer alone has the effective weight."""
    if not isinstance(layer, BaseTunerLayer) or layer.merged:
        yield base_of(layer)
        return
    base = layer.get_base_layer()
    # peft subtracts again what it has added, which does not give the same bits.
    with _kept(*base.parameters()):
        layer.merge()
        try:
            yield base
        finally:
            layer.unmerge()


@contextmanager
def _cut(layer: Any, mask: Tensor) -> Iterator[None]:
    if not parametrize.is_parametrized(layer, "weight"):
        with _kept(layer.weight), torch.no_grad():
            layer.weight.masked_fill_(mask, 0.0)
            yield
        return
    made: Any = layer.parametrizations.weight
    original: Tensor = made.original
    parts: list[Any] = list(made)
    if not all(isinstance(part, SparseDifference) for part in parts):
        raise TypeError(f"cannot set entries of a weight to zero that {type(parts[0]).__name__} makes")
    with _kept(original, *(part.difference for part in parts)), torch.no_grad():
        original.masked_fill_(mask, 0.0)
        for part in parts:
            part.difference.masked_fill_(mask.flatten()[part.index], 0.0)
        yield


@contextmanager
def _kept(*tensors: Tensor) -> Iterator[None]:
    """On exit these have the values that they had."""
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)


def _layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    base = base_of(module)
    # Of a convolution padded by name, opposite sides may differ: no UNet has one.
    if isinstance(base, nn.Linear) or (isinstance(base, nn.Conv2d) and not isinstance(base.padding, str)):
        yield name, module
    elif base is module:  # what peft has put beside another layer is none of the model's own
        for child_name, child in module.named_children():
            yield from _layers(child, f"{name}.{child_name}" if name else child_name)
