"""Anti-memorization guidance: while it samples, a model is pushed away from the training image that it comes near."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from envs.backbones.base import Backbone
from envs.datasets.base import ImageSet
from envs.generate import Steering
from envs.mitigations.base import Mitigation, Situation, Stage, Treatment, within
from rewards.duplicates import duplicate_labels
from rewards.errors import InputError

_MOST = 50
"""Neighbours in the normalized distance of Carlini et al. 2023 (arXiv 2301.13188)."""
_ALPHA = 0.5
"""Of the same; so no distance is above 2."""


@dataclass(frozen=True)
class AntiMemorizationGuidance(Mitigation):
    """At every step of a sampler, images that are near a training image are pushed away from it.

    Chen et al., CVPR 2024, arXiv 2404.00922. **It needs the training data at inference**: their latents are kept
    beside the model, so a released model cannot have it. And it moves samples away from training images by what it
    is, so no distance to training images in pixels or latents can be its judge.

    As in the published code for CIFAR-10, nearness is the normalized distance nL2 of Carlini et al. 2023 between a
    noisy sample and training images noised alike: the distance to the nearest over half the mean distance to the 50
    nearest, here to the ceil(sqrt(n)) nearest of n distinct ones if that is less. Below a threshold that falls from
    1.95 where there is only noise to 1.5 where there is none,

        nL2 < late + (early - late) (1 - exp(-rate s)),   s = t / T,

    the gradient of nL2 is added to the sampler's mean; the mean distance counts as a constant in it, so it points
    straight away from the nearest image. The paper's rate is 0.025 for each of 250 steps, hence 6.25 for the whole.

    What is different, and why. The published gradient is weighted by variance x 1000 x 80 x (threshold - nL2), which
    was chosen for 250 steps of one sampler on images of 3 x 32 x 32: 16 steps are each 16 times as long, and a push
    that long goes far past its aim. Here the push is as long as what is missing: the predicted clean image is moved
    away from its nearest so far that ``scale`` of the way to the distance where nL2 is the threshold is made up in
    one step. That means the same for any number of steps, sampler, size of latents and kind of prediction. And noise
    is not drawn: of a clean image r away from a training image, noised copies are sqrt(signal r^2 + 2 (1 - signal) d)
    apart in d dimensions, but for fluctuations that would make what becomes of an image a matter of luck.
    And as 16 steps are long, it is where a step leads that is looked at, the predicted clean image at the noise of
    the next timestep and without noise at last, and not where it starts from.
    The published code begins only after an image has been near, and pauses at times, which saves time on its ground;
    here every step looks.

    Attributes:
        scale: Share of what is missing that each step makes up, in [0, 1]; 0 is plain sampling.
        early: Threshold where there is only noise, in (0, 2].
        late: Threshold where there is none, in (0, 2]; 2 pushes always.
        rate: How fast the one turns into the other, 0 or more.
    """

    scale: float = 1.0
    early: float = 1.95
    late: float = 1.5
    rate: float = 6.25
    name: ClassVar[str] = "guidance"
    stage: ClassVar[Stage] = Stage.SAMPLING
    source: ClassVar[str] = "Chen et al., CVPR 2024, arXiv 2404.00922"

    def __post_init__(self) -> None:
        if not within(self.scale, 0.0, 1.0):
            raise self.refused("scale", "set it to 0 to 1: the share of the missing distance that a step makes up")
        for setting in ("early", "late"):
            value = getattr(self, setting)
            if not within(value, 0.0, 2.0) or value == 0:
                raise self.refused(setting, "set it above 0 and at most 2, which no normalized distance exceeds")
        if not within(self.rate, 0.0, 1e6):
            raise self.refused("rate", "set it to 0 or more")

    def check(self, backbone: Backbone, images: ImageSet, method: str) -> None:
        """See `Mitigation.check`."""
        super().check(backbone, images, method)
        if len(distinct(images)) < 2:
            raise InputError(
                f"mitigation=guidance with {len(images)} training images, all copies of one",
                "give 2 distinct ones or more: it asks whether one is nearer than the others",
            )

    def treatment(self, situation: Situation) -> Treatment:
        """See `Mitigation.treatment`."""
        if self.scale == 0:
            return Treatment()
        rows = torch.from_numpy(distinct(situation.images)).to(situation.data.latents.device)
        return Treatment(steerings=(Repulsion(self, situation.data.latents[rows]),))


class Repulsion(Steering):
    """See `AntiMemorizationGuidance`.

    Args:
        settings: Scale and thresholds.
        latents: Of distinct training images, ``(n, c, h, w)``, n > 1.
    """

    def __init__(self, settings: AntiMemorizationGuidance, latents: Tensor) -> None:
        self._settings, self._latents = settings, latents
        self._neighbors = max(2, min(_MOST, math.isqrt(len(latents) - 1) + 1))

    def output(self, scheduler: Any, noisy: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """See `Steering.output`."""
        kind, signal = str(scheduler.config.prediction_type), signal_at(scheduler, t)
        if signal >= 1 or (signal <= 0 and kind == "epsilon"):  # a clean image does not follow from such an output
            return output
        # A sampler may scale its latents its own way; a denoiser never sees them but like this.
        seen: Tensor = scheduler.scale_model_input(noisy, t)
        push = self.push(clean_of(kind, signal, seen, output), *where_to(scheduler, t))
        return output if push is None else output + push * per_clean(kind, signal)

    def push(self, clean: Tensor, signal: float, progress: float) -> Tensor | None:
        """What predicted clean images are to be moved by, ``(n, c, h, w)``; None if by nothing.

        Args:
            clean: ``(n, c, h, w)``.
            signal: Share of the variance that is not noise where the step leads, in (0, 1].
            progress: Timestep there as a share of all.
        """
        settings = self._settings
        distances, nearest = self._nearest(clean)
        noise = 2 * (1 - signal) * clean[0].numel()
        noised = (signal * distances.square() + noise).sqrt()
        threshold = settings.late + (settings.early - settings.late) * -math.expm1(-settings.rate * progress)
        aim = threshold * _ALPHA * noised.mean(1)
        short = noised[:, 0] < aim
        if not short.any():
            return None
        first = distances[:, 0]
        missing = ((aim.square() - noise) / signal).clamp(min=0).sqrt() - first
        # On top of a training image there is no way that leads away from it, and its gradient is 0.
        lengths = torch.where(short & (first > 0), settings.scale * missing / first.clamp(min=1e-12), 0)
        return lengths.to(clean.dtype).view(-1, 1, 1, 1) * (clean - self._latents[nearest])

    def _nearest(self, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Distances to the nearest, ``(n, neighbours)``, nearest first, and which is the nearest, ``(n,)``."""
        # Not by products of matrices, which round off what is small, and differently from batch to batch.
        distances = torch.cdist(
            clean.flatten(1).float(), self._latents.flatten(1).float(), compute_mode="donot_use_mm_for_euclid_dist"
        )
        found = distances.topk(self._neighbors, largest=False)
        return found.values, found.indices[:, 0]


def where_to(scheduler: Any, t: Tensor | float) -> tuple[float, float]:
    """``(signal, timestep as a share of all)`` of what the step at ``t`` leads to: the next timestep, or none at last.

    Args:
        scheduler: Of diffusers, with its timesteps set.
        t: One of them.
    """
    # By value: some samplers stop twice at a timestep.
    following = [float(other) for other in scheduler.timesteps if float(other) < float(t)]
    if not following:
        return 1.0, 0.0
    return signal_at(scheduler, max(following)), max(following) / int(scheduler.config.num_train_timesteps)


def signal_at(scheduler: Any, t: Tensor | float) -> float:
    """The share of the variance at timestep ``t`` that is not noise, alphas_cumprod of the noise schedule.

    Some samplers stop between timesteps: there the logarithm of the ratio of noise to signal is linear, which is how
    diffusers finds a timestep for a given noise.

    Args:
        scheduler: Of diffusers.
        t: In [0, T - 1].
    """
    signals, at = scheduler.alphas_cumprod, float(t)
    below, above = signals[math.floor(at)].double(), signals[math.ceil(at)].double()
    if math.floor(at) == math.ceil(at) or above <= 0:
        return float(below)
    return float(torch.sigmoid(torch.lerp(below.logit(), above.logit(), at - math.floor(at))))


def clean_of(kind: str, signal: float, noisy: Tensor, output: Tensor) -> Tensor:
    """The clean image that follows from an output; ``kind`` is diffusers' name of what it predicts."""
    if kind == "epsilon":
        return (noisy - math.sqrt(1 - signal) * output) / math.sqrt(signal)
    if kind == "v_prediction":
        return math.sqrt(signal) * noisy - math.sqrt(1 - signal) * output
    return output


def per_clean(kind: str, signal: float) -> float:
    """How much an output changes with the clean image, the noisy one being what it is; see `clean_of`."""
    if kind == "epsilon":
        return -math.sqrt(signal / (1 - signal))
    return -1 / math.sqrt(1 - signal) if kind == "v_prediction" else 1.0


def distinct(images: ImageSet) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Rows of the first of each set of near-duplicates, which would hide that one of them is nearer than the rest."""
    _, first = np.unique(duplicate_labels(images.images), return_index=True)
    return np.asarray(np.sort(first), dtype=np.int64)
