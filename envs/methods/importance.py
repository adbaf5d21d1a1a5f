"""The few entries of a group's weights that matter most, after SH-PEFT (arXiv 2405.17877)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from envs.groups import LayerGroup
from envs.methods.base import Attachment, Calibration, Method, added_parameters, adding
from rewards.errors import InputError


class SparseDifference(nn.Module):
    """A tensor plus differences at chosen entries; all others stay what they are, to the bit.

    Args:
        index: Of the entries, flattened, ``(k,)``.
        like: A tensor of their type.
    """

    index: Tensor

    def __init__(self, index: Tensor, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index, persistent=False)
        self.difference = nn.Parameter(torch.zeros(len(index), dtype=like.dtype, device=like.device))

    def forward(self, tensor: Tensor) -> Tensor:
        """The tensor with the differences added."""
        return tensor.flatten().index_add(0, self.index, self.difference).view_as(tensor)


@dataclass(frozen=True)
class Importance(Method):
    """Element-wise tuning: of each group, the entries whose rank(|w|) + rank(|w g|) is highest.

    |w| is what matters for any task, |w g| with the loss's gradient g what matters for this one. The paper combines two
    such scores; their sum of ranks is our reading, which has no weight to tune. Ranks are taken within a group, so that
    a toggle stands for the same share wherever it lies.

    Only differences at the chosen entries are parameters. This is a gradient masked everywhere else, but no optimizer,
    weight decay or momentum can reach what is not chosen, and it counts what is trained.

    Attributes:
        share: Of a group's entries, in (0, 1]; at least one.
    """

    share: float = 0.01
    name: ClassVar[str] = "importance"

    def __post_init__(self) -> None:
        number = isinstance(self.share, (int, float)) and not isinstance(self.share, bool)
        if not number or not 0 < self.share <= 1:
            raise InputError(f"method.options.share={self.share}", "set it above 0 and to 1 at most")

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Method.settings`."""
        return asdict(self)

    def __call__(
        self,
        denoiser: nn.Module,
        groups: Sequence[LayerGroup],
        *,
        calibration: Calibration | None = None,
        seed: int = 0,
    ) -> Attachment:
        """See `Method.__call__`.

        Raises:
            ValueError: Without a calibration; one that yields nothing leaves the choice to |w|.
        """
        if calibration is None:
            raise ValueError("method=importance chooses by gradients: it needs a calibration")
        gradients = _gradients(denoiser, calibration)
        with adding(denoiser, seed) as before:
            for group in groups:
                parameters = dict(group.parameters_in(denoiser))
                for name, index in _chosen(parameters, gradients, self.share).items():
                    owner, _, leaf = name.rpartition(".")
                    difference = SparseDifference(index, parameters[name])
                    parametrize.register_parametrization(denoiser.get_submodule(owner), leaf, difference)
        return Attachment(added_parameters(denoiser, groups, before))


def _gradients(denoiser: nn.Module, calibration: Calibration) -> dict[str, Tensor]:
    """The loss's gradients, summed over the batches, by parameter."""
    denoiser.requires_grad_(True)
    denoiser.zero_grad(set_to_none=True)
    try:
        for loss in calibration():
            loss.backward()
        return {name: p.grad.detach().clone() for name, p in denoiser.named_parameters() if p.grad is not None}
    finally:
        denoiser.requires_grad_(False)
        denoiser.zero_grad(set_to_none=True)


@torch.no_grad()
def _chosen(parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Flat indices of the chosen entries, ascending, for each tensor that has any."""
    if not parameters:
        return {}
    weights = torch.cat([p.detach().flatten() for p in parameters.values()])
    slopes = torch.cat([gradients.get(name, torch.zeros_like(p)).flatten() for name, p in parameters.items()])
    score = _ranks(weights.abs()) + _ranks((weights * slopes).abs())
    k = max(1, round(share * len(score)))
    # A stable sort, so that equal scores are chosen in order, on every device.
    best = torch.sort(score, descending=True, stable=True).indices[:k].sort().values
    found, start = {}, 0
    for name, parameter in parameters.items():
        stop = start + parameter.numel()
        inside = best[(best >= start) & (best < stop)] - start
        if len(inside):
            found[name] = inside
        start = stop
    return found


def _ranks(values: Tensor) -> Tensor:
    """The rank of each value, 0 the smallest; equal values share the mean of their ranks."""
    _, place, counts = torch.unique(values, sorted=True, return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    ranks: Tensor = last - (counts + 1) / 2
    return ranks[place]
