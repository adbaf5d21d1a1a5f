"""Anti-Gradient Control: what a model fits suspiciously well already, it does not learn from again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from envs.hooks import Batch, Hooks
from envs.mitigations.base import Mitigation, Situation, Stage, Treatment, within


@dataclass(frozen=True)
class AntiGradientControl(Mitigation):
    """Samples whose loss is low against a running mean of losses at their timestep are left out of the batch.

    Liu et al., ECCV 2024, arXiv 2407.15328. A bank b holds a moving average of losses for each timestep, 0 at first. A
    sample is kept if loss * mem_ratio >= b[t]; the loss is the mean over what is kept, and then every sample's loss,
    kept or not, moves b[t] in batch order: b[t] <- decay * b[t] + (1 - decay) * loss. The published code takes a step
    of Adam's momentum where nothing is kept; here such a batch changes nothing.

    Attributes:
        mem_ratio: The paper's 1 / lambda, above 1: 2 for small images from scratch, 1.25 for Stable Diffusion.
        decay: Of the bank, in [0, 1).
    """

    mem_ratio: float = 2.0
    decay: float = 0.8
    name: ClassVar[str] = "agc"
    stage: ClassVar[Stage] = Stage.STEP
    source: ClassVar[str] = "Liu et al., ECCV 2024, arXiv 2407.15328"

    def __post_init__(self) -> None:
        if not within(self.mem_ratio, 1.0, 1e6):
            raise self.refused("mem_ratio", "set it to 1 or more: 2 leaves out losses below half of the mean")
        if not within(self.decay, 0.0, 1.0) or self.decay == 1:
            raise self.refused("decay", "set it to 0 or more and below 1")

    def treatment(self, situation: Situation) -> Treatment:
        """See `Mitigation.treatment`."""
        return Treatment(hooks=(lambda number: LossBank(situation.backbone.timesteps, self.mem_ratio, self.decay),))


class LossBank(Hooks):
    """See `AntiGradientControl`.

    Args:
        timesteps: Of the noise schedule.
        mem_ratio: See there.
        decay: See there.

    Attributes:
        means: The bank, float64 ``(timesteps,)``.
    """

    def __init__(self, timesteps: int, mem_ratio: float, decay: float) -> None:
        self.means = torch.zeros(timesteps, dtype=torch.float64)
        self._mem_ratio, self._decay = mem_ratio, decay
        self._seen = self._skipped = 0

    def kept(self, losses: Tensor, batch: Batch) -> Tensor:
        """See `Hooks.kept`."""
        found, t = losses.detach().double().cpu(), batch.t.cpu()
        kept = found * self._mem_ratio >= self.means[t]
        # One after another: a timestep may occur twice in a batch.
        for loss, step in zip(found.tolist(), t.tolist(), strict=True):
            self.means[step] = self._decay * self.means[step] + (1 - self._decay) * loss
        self._seen, self._skipped = self._seen + len(kept), self._skipped + int((~kept).sum())
        return kept.to(losses.device)

    def figures(self) -> dict[str, float]:
        """See `Hooks.figures`."""
        return {"agc.skipped_share": self._skipped / max(self._seen, 1)}

    def state(self) -> dict[str, Tensor]:
        """See `Hooks.state`."""
        return {"means": self.means.clone(), "counts": torch.tensor([self._seen, self._skipped])}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See `Hooks.load`."""
        self.means.copy_(state["means"])
        self._seen, self._skipped = state["counts"].tolist()
