"""Noise magnitude: does a caption pull at the denoiser as only a memorized one does?"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from rewards.calibration import bootstrap_mean
from rewards.estimate import Estimate
from rewards.evidence import NoiseMagnitudes
from rewards.measurement import Measurement
from rewards.metric import RewardMetric
from rewards.reference import Reference
from rewards.sample import Sample


def noise_magnitude(norms: Tensor, dimensions: int) -> Tensor:
    """How much a caption changes the predicted noise, per dimension, over a generation: not negative, ``(n,)``.

    The mean over sampling steps of ||eps(x_t, caption) - eps(x_t, "")||_2 of Wen et al. (ICLR 2024), divided by the
    square root of the dimensions: a threshold then does not depend on the size of the images or latents. It is the
    *noise* that is compared: where a model predicts v, its outputs' difference times sqrt(signal).

    It consults no training image, so it is evidence about captions, not about copies.

    Args:
        norms: ``(steps, n)``: the norm at each step of each generation.
        dimensions: Of what is denoised: channels times height times width.
    """
    return norms.mean(0) / math.sqrt(dimensions)


class NoiseMagnitude(RewardMetric):
    """The mean `noise_magnitude` of generations from training captions, with a bootstrap interval.

    For models that take captions. Its null is the mean of generations from captions of held-out images, None if there
    are none: the same model is asked, so it comes with the evidence and not from the reference.

    Example:
        >>> import torch
        >>> metric = NoiseMagnitude()
        >>> metric.update(torch.tensor([0.5, 1.0]))
        >>> metric.compute()
        tensor(0.7500)
    """

    name = "noise_magnitude"
    higher_is_better = False
    needs = frozenset({"noise_magnitudes"})
    plot_lower_bound = 0.0

    magnitudes: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("magnitudes", default=[], dist_reduce_fx="cat")

    def update(self, magnitudes: Tensor) -> None:
        """Adds magnitudes ``(n,)`` of generations from training captions."""
        self.magnitudes.append(magnitudes)

    def compute(self) -> Tensor:
        """The value so far."""
        magnitudes: Tensor = dim_zero_cat(self.magnitudes)
        return magnitudes.mean()

    def shortfall(self, sample: Sample) -> str:
        """See `RewardMetric`."""
        n = len(_magnitudes(sample).train)
        return f"needs 2 generations from training captions, got {n}" if n < 2 else ""

    def estimate(self, sample: Sample) -> Estimate:
        """See `RewardMetric`."""
        return bootstrap_mean(_magnitudes(sample).train)

    def null(self, reference: Reference) -> None:
        """See `RewardMetric`."""
        return None

    def measure(self, sample: Sample) -> Measurement:
        """See `RewardMetric`; the null is that of the evidence."""
        measurement = super().measure(sample)
        magnitudes = sample.evidence.noise_magnitudes
        if magnitudes is None or not len(magnitudes.heldout):
            return measurement
        return replace(measurement, null=float(magnitudes.heldout.double().mean()))


def _magnitudes(sample: Sample) -> NoiseMagnitudes:
    magnitudes = sample.evidence.noise_magnitudes
    assert magnitudes is not None
    return magnitudes
