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
    """Samples whose loss is low against a running mean of losses near their timestep are left out of the batch.

    Liu et al., ECCV 2024, arXiv 2407.15328. A bank b holds a moving average of losses for each region of the noise
    schedule, 0 at first. A sample is kept if loss * mem_ratio >= b[region of t]; the loss is the mean over what is
    kept, and then every sample's loss, kept or not, moves the bank in batch order: b <- decay * b + (1 - decay) * loss.
    The published code takes a step of Adam's momentum where nothing is kept; here such a batch changes nothing.

    The paper's regions are single timesteps. Its runs visit each a hundred times and more; a short fine-tune visits
    most of a thousand timesteps once or twice, when the bank is still near 0, and would leave nothing out.

    Attributes:
        mem_ratio: The paper's 1 / lambda, above 1: 2 for small images from scratch, 1.25 for fine-tuning Stable
            Diffusion.
        decay: Of the bank, in [0, 1).
        regions: Of the noise schedule, equally long; None for one a timestep, as in the paper.
    """

    mem_ratio: float = 1.25
    decay: float = 0.8
    regions: int | None = 50
    name: ClassVar[str] = "agc"
    stage: ClassVar[Stage] = Stage.STEP
    source: ClassVar[str] = "Liu et al., ECCV 2024, arXiv 2407.15328"

    def __post_init__(self) -> None:
        if not within(self.mem_ratio, 1.0, 1e6):
            raise self.refused("mem_ratio", "set it to 1 or more: 2 leaves out losses below half of the mean")
        if not within(self.decay, 0.0, 1.0) or self.decay == 1:
            raise self.refused("decay", "set it to 0 or more and below 1")
        if self.regions is not None and (
            isinstance(self.regions, bool) or not isinstance(self.regions, int) or self.regions < 1
        ):
            raise self.refused("regions", "set it to a whole number of 1 or more, or to null for one a timestep")

    def treatment(self, situation: Situation) -> Treatment:
        """See `Mitigation.treatment`."""
        timesteps = situation.backbone.timesteps
        return Treatment(hooks=(lambda number: LossBank(timesteps, self.mem_ratio, self.decay, self.regions),))


class LossBank(Hooks):
    """See `AntiGradientControl`.

    Args:
        timesteps: Of the noise schedule.
        mem_ratio: See there.
        decay: See there.
        regions: See there; more than there are timesteps are as many as these.

    Attributes:
        means: The bank, float64 ``(regions,)``.
    """

    def __init__(self, timesteps: int, mem_ratio: float, decay: float, regions: int | None = None) -> None:
        self.means = torch.zeros(min(regions or timesteps, timesteps), dtype=torch.float64)
        self._timesteps = timesteps
        self._mem_ratio, self._decay = mem_ratio, decay
        self._seen = self._skipped = 0

    def kept(self, losses: Tensor, batch: Batch) -> Tensor:
        """See `Hooks.kept`."""
        found, regions = losses.detach().double().cpu(), batch.t.cpu() * len(self.means) // self._timesteps
        kept = found * self._mem_ratio >= self.means[regions]
        # One after another: a region may occur twice in a batch.
        for loss, region in zip(found.tolist(), regions.tolist(), strict=True):
            self.means[region] = self._decay * self.means[region] + (1 - self._decay) * loss
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
