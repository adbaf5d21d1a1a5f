"""Which weights carry one set of inputs more than another (Wanda scores, arXiv 2306.11695)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.mitigations.effective import base_of

Power = Mapping[str, Tensor]
"""By layer, the mean square of each input over rows of norm 1: ``(groups, inputs)``; 1 group but of convolutions."""


class PowerMeter:
    """Sums the squares of layers' inputs while a model computes.

    A row is what one output position looks at: a token, or a convolution's patch. Each is divided by its norm, so that
    what counts is the direction of an input, not its size.

    Args:
        layers: Linear layers and convolutions by name.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = layers
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Inside, what goes into the layers counts."""
        handles = []
        for name, layer in self._layers.items():
            base = base_of(layer)

            def read(_: nn.Module, inputs: tuple[Any, ...], name: str = name, base: nn.Module = base) -> None:
                rows = rows_of(base, inputs[0].detach())
                total = F.normalize(rows, dim=2).square().sum(dim=(0, 3))
                self._sums[name] = self._sums[name] + total if name in self._sums else total
                self._rows[name] = self._rows.get(name, 0) + rows.shape[0] * rows.shape[3]

            handles.append(layer.register_forward_pre_hook(read))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def power(self) -> Power:
        """The mean over the rows so far."""
        return {name: total / self._rows[name] for name, total in self._sums.items()}


def rows_of(layer: nn.Module, x: Tensor) -> Tensor:
    """What the rows of a layer's weight are multiplied with.

    Args:
        layer: ``Linear`` or ``Conv2d``.
        x: Its input.

    Returns:
        float32 ``(n, groups, inputs, positions)``.
    """
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str), "diffusers pads by numbers"
        patches = F.unfold(x.float(), layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return patches.view(len(x), layer.groups, -1, patches.shape[-1])
    flat = x.float().flatten(1, -2) if x.ndim > 2 else x.float()[:, None]
    return flat.transpose(1, 2)[:, None]


def located(weight: Tensor, memorized: Tensor, base: Tensor, ratio: float) -> Tensor:
    """The entries that matter most for a memorized set, and more than for a base set.

    |W| times the root of the power is an entry's score. Of each output row those are taken whose score is among the
    ``ratio`` highest on the memorized set and higher than on the base set (Chavhan et al., arXiv 2406.18566).

    Args:
        weight: ``(out, ...)``.
        memorized: Power of the inputs, ``(groups, inputs)``.
        base: The same of the base set.
        ratio: In [0, 1]; of a row's n entries floor(ratio n) at most are taken.

    Returns:
        Bool, of the weight's shape.
    """
    rows = weight.flatten(1).abs().float()
    mask, count = torch.zeros_like(rows, dtype=torch.bool), math.floor(ratio * rows.shape[1] + 1e-9)
    if count:
        score, other = (
            rows * power.sqrt().repeat_interleave(len(rows) // len(power), dim=0) for power in (memorized, base)
        )
        mask.scatter_(1, score.topk(count, dim=1).indices, True)
        mask &= score > other
    return mask.view(weight.shape)


def subspace(
    weights: Mapping[str, Tensor], memorized: Sequence[Power], base: Sequence[Power], ratio: float
) -> dict[str, Tensor]:
    """By layer, what `located` finds at any of several timesteps.

    Args:
        weights: By layer.
        memorized: One a timestep.
        base: One a timestep.
        ratio: See `located`.
    """
    masks = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    for one, other in zip(memorized, base, strict=True):
        for name in one.keys() & weights.keys():
            masks[name] |= located(weights[name], one[name], other[name], ratio)
    return masks
