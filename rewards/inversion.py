"""Inversion: can named images be got back out of a model, and how special must the noise be that brings them?"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from rewards.calibration import threshold
from rewards.errors import InputError
from rewards.metric import check_setting

Progress = Callable[[int, int], None]
"""Called with how many are done, and of how many."""


class Denoiser(Protocol):
    """What inversion asks of a diffusion model, in pixels or latents, with text or without.

    A clean image is a tensor of any one shape ``(...)`` that the model's noise has too; conditions are the model's own,
    one row an image, and None for an unconditional model.
    """

    @property
    def signal(self) -> Tensor:
        """The share of signal at each timestep, float ``(T,)``: x_t = sqrt(signal) x_0 + sqrt(1 - signal) noise.

        Only timesteps at which `clean` can be trusted. Prediction of the noise divides its error by sqrt(signal), so
        such a model leaves out the noisiest; prediction of v or of the image itself is stable at all of them.
        """

    def clean(self, noisy: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """What the model takes the images behind ``(n, ...)`` at timesteps ``(n,)`` to be; differentiable."""

    def sample(self, noise: Tensor, condition: Tensor | None, steps: int) -> Tensor:
        """Clean images ``(n, ...)`` from standard normal noise by a sampler that draws none of its own."""

    def decode(self, clean: Tensor) -> Tensor:
        """Clean images ``(n, ...)`` as people see them: uint8 ``(n, 3, h, w)``."""


@runtime_checkable
class Prompted(Protocol):
    """What a `Denoiser` has besides if a soft prompt can be learnt for it."""

    @property
    def prompt_shape(self) -> tuple[int, int]:
        """How many words a prompt has, and how many words there are."""

    def encode_prompt(self, weights: Tensor) -> Tensor:
        """The condition ``(1, ...)`` of a prompt of mixed words, ``(words, vocabulary)``; differentiable."""


@dataclass(frozen=True)
class Similarity:
    """When a sample counts as the image that was looked for.

    Attributes:
        measure: Of a uint8 image ``(3, h, w)`` and k others ``(k, 3, h, w)``, ``(k,)``: larger is more alike.
        threshold: A sample above it is the image. It belongs to the measure and to the images: SSCD's 0.5, for one, is
            what two different chest X-rays have in common.
    """

    measure: Callable[[Tensor, Tensor], Tensor]
    threshold: float


def pixel_similarity(target: Tensor, samples: Tensor) -> Tensor:
    """Minus the root mean square difference, in [-1, 0]; 0 only for an exact copy. See `Similarity`."""
    return -(samples.double() - target.double()).square().mean((1, 2, 3)).sqrt() / 255


def calibrated_similarity(
    train: Tensor,
    heldout: Tensor,
    rate: float = 0.01,
    measure: Callable[[Tensor, Tensor], Tensor] = pixel_similarity,
) -> Similarity:
    """A measure with the threshold that a new held-out image's nearest training image passes at the given rate only.

    Both sets have to look as the model's output does, so for a latent model they are given as its autoencoder returns
    them: a decoder can do no better than that, and its blur alone would keep an exact copy from being recognised.

    Args:
        train: uint8 ``(n, 3, h, w)``, n > 0.
        heldout: uint8 ``(m, 3, h, w)``, m > 0: of other patients.
        rate: In (0, 1), see `rewards.calibration.threshold`; below 1 / (m + 1) it cannot be kept.
        measure: See `Similarity`.

    Raises:
        InputError: If the rate is out of range.
    """
    check_setting("inversion.rate", rate, 0, 1)
    nearest = torch.stack([measure(image, train).max() for image in heldout])
    return Similarity(measure, -threshold(-nearest, rate).value)


@dataclass(frozen=True)
class InversionSettings:
    """How long and how hard is tried; the names in brackets are those of Ma et al.

    The published constants (a try every 50 of 2000 steps, 200 sampling steps, a weight of 1) are for large models and
    SSCD. These were chosen on chest X-rays with the embedded backbone. Tries come early and the search ends soon: a
    memorized image needs few steps, and with more of them an overfitted model can be made to give other images too.
    The weight balances two losses whose scales are the model's own; another kind of model may need another one.

    Attributes:
        steps: Optimizer steps before an image is given up.
        check_every: Steps between two tries to sample the image (C).
        learning_rate: Adam's.
        batch: Draws of timestep and noise a step.
        samples: Drawn at a try; all of them have to be the image.
        sampling_steps: Of the deterministic sampler.
        weight: Of the divergence in the loss, at first (w).
        weight_step: What is added to it after each step (delta).
        improvement: Between two tries the mean reconstruction loss has to fall by this, or the weight is halved (xi).
        window: Steps over which that mean is taken.
        prompt: ``caption``: the condition that is given with each image, if any; ``soft``: a prompt is learnt too.
        temperature: Of the soft prompt's Gumbel-softmax (tau).
        together: Images that share a pass of ``together * batch`` rows: faster, and the same up to rounding.
        seed: Of all draws, which are the same for every image.

    Raises:
        InputError: If one is out of range.
    """

    steps: int = 30
    check_every: int = 5
    learning_rate: float = 0.1
    batch: int = 8
    samples: int = 8
    sampling_steps: int = 16
    weight: float = 0.5
    weight_step: float = 1e-3
    improvement: float = 1e-3
    window: int = 10
    prompt: Literal["caption", "soft"] = "caption"
    temperature: float = 2.0
    together: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "check_every", "batch", "samples", "sampling_steps", "window", "together"):
            if getattr(self, name) < 1:
                raise InputError(f"inversion.{name}={getattr(self, name)}", "set it to 1 or more")
        if self.check_every > self.steps:
            raise InputError(
                f"inversion.check_every={self.check_every} of {self.steps} steps", "check at least once within them"
            )
        for name in ("learning_rate", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"inversion.{name}={getattr(self, name)}", "set it above 0 and finite")
        for name in ("weight", "weight_step", "improvement", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"inversion.{name}={getattr(self, name)}", "set it to 0 or more and finite")
        if self.prompt not in ("caption", "soft"):
            raise InputError(f"inversion.prompt={self.prompt!r}", "choose among caption, soft")


class InversionResult(NamedTuple):
    """What trying one image found.

    Attributes:
        value: KL divergence per dimension, in nats, between the noise that brings the image and the model's own; the
            smaller, the likelier the model is to give the image away. Infinity if it was not found (censored).
        success: True if it was found.
        steps: Optimizer steps taken.
        similarity: Smallest that was seen at the last try; a try ends with the first sample that is not the image.
    """

    value: float
    success: bool
    steps: int
    similarity: float


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, diag e^log_variance) || N(0, I)) per dimension, in nats: ``(n, ...)`` to ``(n,)``."""
    terms = mean.square() + log_variance.exp() - log_variance - 1
    return terms.flatten(1).mean(1) / 2


def invert(
    model: Denoiser,
    targets: Tensor,
    similarity: Similarity,
    settings: InversionSettings,
    conditions: Tensor | None = None,
    progress: Progress | None = None,
) -> list[InversionResult]:
    """The inversion-based measure of Ma et al. (arXiv:2405.05846) of each image.

    A diagonal normal distribution of noise is learnt under which the model denoises to the image, kept near the
    standard normal one by a weight that grows as long as the reconstruction improves and is halved when it does not.
    The search ends when every one of a few samples from it is the image. Where this deviates: samples are compared with
    ``model.decode`` of the target, and a try uses the same normal draws every time and ends at its first failure.

    The model's weights are neither changed nor given gradients.

    Args:
        model: Ready for use: in evaluation mode, best with its weights frozen.
        targets: Clean images ``(n, ...)``.
        similarity: When a sample counts as the target.
        settings: Constants, and the seed.
        conditions: Of each image ``(n, ...)``; None for an unconditional model. Not used with a soft prompt.
        progress: Called after every group of images.

    Raises:
        InputError: If a soft prompt is asked of a model that takes none.
    """
    if settings.prompt == "soft" and not isinstance(model, Prompted):
        raise InputError("inversion.prompt='soft' with a model that takes no text", "use caption")
    results: list[InversionResult] = []
    for start in range(0, len(targets), settings.together):
        rows = slice(start, start + settings.together)
        search = _Search(model, targets[rows], similarity, settings, None if conditions is None else conditions[rows])
        results += search.run()
        if progress is not None:
            progress(len(results), len(targets))
    return results


class _Search:
    """Several images at a time: what is learnt has one row an image, and each row is what it would be alone."""

    def __init__(
        self,
        model: Denoiser,
        targets: Tensor,
        similarity: Similarity,
        settings: InversionSettings,
        conditions: Tensor | None,
    ) -> None:
        self.model, self.targets, self.similarity, self.settings = model, targets, similarity, settings
        self.conditions = conditions
        with torch.no_grad():
            self.pictures = model.decode(targets)
        self.signal = model.signal.to(targets)
        n = len(targets)
        self.mean = torch.zeros_like(targets).requires_grad_()
        self.log_variance = torch.zeros_like(targets).requires_grad_()
        self.learnt = [self.mean, self.log_variance]
        self.prompts: Tensor | None = None
        if settings.prompt == "soft":
            assert isinstance(model, Prompted)
            self.prompts = torch.zeros((n, *model.prompt_shape), device=targets.device).requires_grad_()
            self.learnt.append(self.prompts)
        self.optimizer = torch.optim.Adam(self.learnt, lr=settings.learning_rate)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.tried = self._normal(settings.samples)
        self.tried_gumbel = self._gumbel()
        self.weight = torch.full((n,), settings.weight, device=targets.device)
        self.past: list[Tensor] = []
        self.level = torch.full((n,), torch.inf, device=targets.device)

    def run(self) -> list[InversionResult]:
        results = [InversionResult(math.inf, False, self.settings.steps, -math.inf)] * len(self.targets)
        left = list(range(len(self.targets)))
        for step in range(1, self.settings.steps + 1):
            self._learn(left)
            if step % self.settings.check_every:
                self.weight += self.settings.weight_step
                continue
            self._adapt()
            values = divergence(self.mean.detach(), self.log_variance.detach())
            for row, least in zip(left, self._try(left), strict=True):
                value = float(values[row])
                # A broken model may drive the search to NaN, and what is decoded from that is any image.
                found = least > self.similarity.threshold and math.isfinite(value)
                value = value if found else math.inf
                results[row] = InversionResult(value, found, step if found else self.settings.steps, least)
            left = [row for row in left if not results[row].success]
            if not left:
                break
        return results

    def _learn(self, left: list[int]) -> None:
        """One optimizer step of the rows that are left. The others' gradients are zero, and nobody reads them again."""
        draws = self.settings.batch
        t = torch.randint(len(self.signal), (draws,), generator=self.generator).to(self.targets.device)
        z, gumbel = self._normal(draws), self._gumbel()
        signal = self.signal[t].view(1, draws, *[1] * (self.targets.ndim - 1))
        with torch.enable_grad():
            clean = self.targets[left, None]
            noise = self.mean[left, None] + (self.log_variance[left, None] / 2).exp() * z
            noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
            condition = self._condition(left, draws, gumbel)
            found = self.model.clean(noisy.flatten(0, 1), t.repeat(len(left)), condition).view_as(noisy)
            losses = (found - clean).square().flatten(1).mean(1)
            penalty = self.weight[left] * divergence(self.mean[left], self.log_variance[left])
            # Not backward(): it would leave gradients at the model's weights too.
            gradients = torch.autograd.grad((losses + penalty).sum(), self.learnt)
        for learnt, gradient in zip(self.learnt, gradients, strict=True):
            learnt.grad = gradient
        self.optimizer.step()
        every = torch.zeros_like(self.level)
        every[left] = losses.detach()
        self.past = [*self.past, every][-self.settings.window :]

    def _adapt(self) -> None:
        level = torch.stack(self.past).mean(0)
        stalled = self.level - level < self.settings.improvement
        self.weight = torch.where(stalled, self.weight / 2, self.weight + self.settings.weight_step)
        self.level = level

    @torch.no_grad()
    def _try(self, left: list[int]) -> list[float]:
        """The smallest similarity seen of each row: of one sample, and if that is the image, of the others as well."""
        least = self._similarities(left, self.tried[:1])
        rest = self.tried[1:]
        near = [i for i, value in enumerate(least) if value > self.similarity.threshold]
        if near and len(rest):
            for i, value in zip(near, self._similarities([left[i] for i in near], rest), strict=True):
                least[i] = min(least[i], value)
        return least

    def _similarities(self, rows: list[int], z: Tensor) -> list[float]:
        noise = self.mean[rows, None] + (self.log_variance[rows, None] / 2).exp() * z
        condition = self._condition(rows, len(z), self.tried_gumbel)
        samples = self.model.decode(self.model.sample(noise.flatten(0, 1), condition, self.settings.sampling_steps))
        of_rows = samples.split(len(z))
        return [
            float(self.similarity.measure(self.pictures[row], own).min())
            for row, own in zip(rows, of_rows, strict=True)
        ]

    def _condition(self, rows: list[int], copies: int, gumbel: Tensor | None) -> Tensor | None:
        if self.prompts is not None:
            assert isinstance(self.model, Prompted)
            assert gumbel is not None
            encode = self.model.encode_prompt
            mixed = [((self.prompts[row] + gumbel) / self.settings.temperature).softmax(-1) for row in rows]
            return torch.cat([encode(weights) for weights in mixed]).repeat_interleave(copies, 0)
        return None if self.conditions is None else self.conditions[rows].repeat_interleave(copies, 0)

    def _normal(self, draws: int) -> Tensor:
        return torch.randn((draws, *self.targets.shape[1:]), generator=self.generator).to(self.targets)

    def _gumbel(self) -> Tensor | None:
        if self.prompts is None:
            return None
        uniform = torch.empty(self.prompts.shape[1:]).exponential_(generator=self.generator)
        return -uniform.clamp(min=torch.finfo(uniform.dtype).tiny).log().to(self.prompts.device)
