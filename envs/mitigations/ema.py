"""An exponential moving average: the fine-tune ends with the mean of where its weights have been lately."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from envs.course import set_values, values
from envs.hooks import Hooks
from envs.mitigations.base import Mitigation, Situation, Stage, Treatment, within


@dataclass(frozen=True)
class MovingAverage(Mitigation):
    """What the fine-tune ends with is an exponential moving average of the parameters that learn.

    Ho et al., arXiv 2006.11239, appendix B, with the warm-up of diffusers' ``EMAModel``. After the first step it is
    what that step led to, and in step n > 1 it keeps min(decay, 1 - n^-power) of itself, so that the base model weighs
    nothing: n^power steps count, of the 120 of the embedded backbone's budget the last 36. What a method adds is
    averaged factor by factor, as everywhere. In Iterative Ensemble Training each learner has its own average, and
    in every round the averages are averaged as the weights are (Liu et al., ECCV 2024).

    Attributes:
        decay: Most that the average keeps of itself in a step, in [0, 1); 0 for no average.
        power: Of the warm-up, in (0, 1]: at 1 the mean of all steps.
    """

    decay: float = 0.9999
    power: float = 0.75
    name: ClassVar[str] = "ema"
    stage: ClassVar[Stage] = Stage.STEP
    source: ClassVar[str] = "Ho et al., NeurIPS 2020, arXiv 2006.11239"

    def __post_init__(self) -> None:
        if not within(self.decay, 0.0, 1.0) or self.decay == 1:
            raise self.refused("decay", "set it to 0 or more and below 1")
        if not within(self.power, 0.0, 1.0) or self.power == 0:
            raise self.refused("power", "set it above 0 and to 1 or less")

    def treatment(self, situation: Situation) -> Treatment:
        """See `Mitigation.treatment`."""
        if not self.decay:
            return Treatment()
        return Treatment(hooks=(lambda number: Average(self.decay, self.power),))


class Average(Hooks):
    """See `MovingAverage`.

    Args:
        decay: See there.
        power: See there.
    """

    def __init__(self, decay: float, power: float) -> None:
        self._decay, self._power = decay, power
        self._average: list[Tensor] = []
        self._steps = 0

    def optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """See `Hooks.optimizer`; its parameters are what is averaged, and it goes back as it came."""
        self._average = values([parameter for group in optimizer.param_groups for parameter in group["params"]])
        return optimizer

    def stepped(self, parameters: Sequence[nn.Parameter]) -> None:
        """See `Hooks.stepped`."""
        self._steps += 1
        update = get_ema_multi_avg_fn(min(self._decay, 1 - self._steps**-self._power))
        # In one pass over the weights; EMAModel takes two and memory of the weights' size, a tenth of a small step.
        update(self._average, [parameter.detach() for parameter in parameters], None)

    def shared(self) -> list[Tensor]:
        """See `Hooks.shared`."""
        return self._average

    @contextmanager
    def delivered(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """See `Hooks.delivered`."""
        own = values(parameters)
        set_values(parameters, self._average)
        try:
            yield
        finally:
            set_values(parameters, own)
