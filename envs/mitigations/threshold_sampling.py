"""The threshold on noise magnitude at sampling: a caption that pulls too hard is changed before it is sampled from."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from envs.backbones.base import Backbone
from envs.datasets.base import ImageSet
from envs.generate import Steering
from envs.mitigations.base import Mitigation, Situation, Stage, Treatment, within
from envs.mitigations.caption_pull import caption_pull, caption_pulls, check_captions, heldout_rows, usual_limit
from envs.probes import frozen
from envs.seeding import torch_generator


@dataclass(frozen=True)
class ThresholdSampling(Mitigation):
    """Where a caption changes the output of the first sampling step too much, its text state is descended until not.

    Wen et al., ICLR 2024, section 4.2, mitigate so at inference: AdamW on the text state, whose loss is the norm of
    the text-conditional noise at the first step, until it is at most a target; 3 for Stable Diffusion, of latents of
    4 x 64 x 64, so 3 / 128 per dimension. See `caption_pull` for what is compared where a model does not predict noise.

    The published code takes the norm over the tensor of the whole batch, so that what becomes of an image depends on
    the images beside it, and a target on how many there are. Here every image has a norm, an optimizer and an end of
    its own, and of its states the one that pulls least is taken. Images at or below the target are not touched: by
    default all but one in twenty, unless captions that were trained on pull harder than others do.

    Attributes:
        quantile: The target is this quantile, in (0, 1), of what held-out captions pull at the same model at the first
            step from random noises.
        draws: Of held-out captions; with fewer than 1 / (1 - quantile) the target is the largest of them.
        target: Per dimension, instead of a calibrated one; None for that.
        learning_rate: Of AdamW; the paper has 0.05.
        iterations: At most; the paper has 10. Each is a forward and a backward pass for the images that are not done.
    """

    quantile: float = 0.95
    draws: int = 64
    target: float | None = None
    learning_rate: float = 0.05
    iterations: int = 10
    name: ClassVar[str] = "threshold_sampling"
    stage: ClassVar[Stage] = Stage.SAMPLING
    source: ClassVar[str] = "Wen et al., ICLR 2024, openreview 84n3UwkH7b"
    needs_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not within(self.quantile, 0.0, 1.0) or self.quantile in (0, 1):
            raise self.refused("quantile", "set it above 0 and below 1")
        for setting, least in (("draws", 1), ("iterations", 0)):
            count = getattr(self, setting)
            if isinstance(count, bool) or not isinstance(count, int) or count < least:
                raise self.refused(setting, f"set it to a whole number of {least} or more")
        if self.target is not None and not within(self.target, 0.0, 1e6):
            raise self.refused("target", "set it to 0 or more, per dimension, or to null to calibrate it")
        if not within(self.learning_rate, 0.0, 1e3) or self.learning_rate == 0:
            raise self.refused("learning_rate", "set it above 0")

    def check(self, backbone: Backbone, images: ImageSet, method: str) -> None:
        """See `Mitigation.check`."""
        super().check(backbone, images, method)
        check_captions(self.name, images)

    def treatment(self, situation: Situation) -> Treatment:
        """See `Mitigation.treatment`."""
        if self.iterations == 0:
            return Treatment()
        budget = situation.budget
        target = self._usual(situation) if self.target is None else float(self.target)
        # As many images at once as a step of the training holds in memory with their gradients.
        return Treatment(
            steerings=(Descent(target, self.learning_rate, self.iterations, budget.sampling_steps, budget.batch_size),)
        )

    def _usual(self, situation: Situation) -> Usual:
        data, generator = situation.heldout_data, torch_generator(situation.seed, self.name)
        rows = heldout_rows(self.name, situation, self.draws, generator)
        noise = torch.randn((len(rows), *situation.backbone.latent_shape), generator=generator)
        return Usual(data.states[rows.to(data.states.device)], noise.to(data.states.device), self.quantile)


@dataclass(frozen=True, eq=False)
class Usual:
    """What held-out captions pull at whichever model is sampled from.

    Attributes:
        states: Of the captions, ``(n, tokens, width)``.
        noise: That sampling starts from, ``(n, c, h, w)``.
        quantile: See `ThresholdSampling`.
    """

    states: Tensor
    noise: Tensor
    quantile: float

    def target(self, backbone: Backbone, empty_state: Tensor, steps: int) -> float:
        """The quantile, per dimension: two forward passes of each caption.

        Args:
            backbone: With the denoiser in the state to sample from.
            empty_state: ``(1, tokens, width)``.
            steps: Of the sampler.
        """
        noisy, t = first_step(backbone, self.noise, steps)
        return usual_limit(caption_pulls(backbone, noisy, t, self.states, empty_state), self.quantile)


class Descent(Steering):
    """See `ThresholdSampling`.

    Args:
        target: Most that a caption may pull, per dimension, or what it is calibrated by whenever images are sampled.
        learning_rate: Of AdamW.
        iterations: At most.
        steps: Of the sampler, whose first is looked at.
        at_once: Images that go through the denoiser together; what becomes of them does not depend on it.
    """

    def __init__(self, target: float | Usual, learning_rate: float, iterations: int, steps: int, at_once: int) -> None:
        self._target, self._rate, self._iterations = target, learning_rate, iterations
        self._steps, self._at_once = steps, at_once

    def states(self, backbone: Backbone, states: Tensor, empty_state: Tensor, noise: Tensor) -> Tensor:
        """See `Steering.states`."""
        target = self._target
        if isinstance(target, Usual):
            target = target.target(backbone, empty_state, self._steps)
        noisy, t = first_step(backbone, noise, self._steps)
        pulls = caption_pulls(backbone, noisy, t, states, empty_state)
        above = torch.nonzero(pulls > target).flatten()
        if not len(above):
            return states
        # A caller may be in inference mode, where there are no gradients.
        with torch.inference_mode(False), torch.enable_grad(), frozen(backbone.denoiser):
            found = states.clone()
            for rows in above.split(self._at_once):
                # Copies can have gradients though what they are of was made in inference mode.
                found[rows] = self._descended(backbone, target, noisy[rows], t[rows], states[rows], empty_state.clone())
        return found

    def _descended(
        self, backbone: Backbone, target: float, noisy: Tensor, t: Tensor, states: Tensor, empty_state: Tensor
    ) -> Tensor:
        with torch.no_grad():
            without = backbone.predict(noisy, t, empty_state.expand_as(states))
        # A parameter each: those that have no gradient, being done, are left alone by the optimizer.
        each = [torch.nn.Parameter(state.clone()) for state in states]
        optimizer = torch.optim.AdamW(each, lr=self._rate)
        best, least = states.clone(), torch.full((len(states),), torch.inf, device=states.device)
        for iteration in range(self._iterations + 1):
            rows = torch.nonzero(least > target).flatten()
            if not len(rows):
                break
            descending = iteration < self._iterations
            with torch.set_grad_enabled(descending):
                present = torch.stack([each[row] for row in rows.tolist()])
                pulls = caption_pull(backbone.predict(noisy[rows], t[rows], present), without[rows])
            better = pulls.detach() < least[rows]
            best[rows[better]], least[rows[better]] = present.detach()[better], pulls.detach()[better]
            if descending:
                optimizer.zero_grad(set_to_none=True)
                # The sum's gradient is each image's own. As in the paper it is of the norm, not of the norm per
                # dimension, which in fp16 would be lost.
                (pulls.sum() * noisy[0].numel() ** 0.5).backward()
                optimizer.step()
        return best


def first_step(backbone: Backbone, noise: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """``(noisy latents as the denoiser takes them, timesteps)`` of a sampler's first step, ``(n, c, h, w)``, ``(n,)``.

    Args:
        backbone: Its sampler.
        noise: That it starts from, standard normal, ``(n, c, h, w)``.
        steps: Of the sampler.
    """
    scheduler = copy.deepcopy(backbone.scheduler)
    scheduler.set_timesteps(steps, device=noise.device)
    t = scheduler.timesteps[0]
    noisy: Tensor = scheduler.scale_model_input(noise * scheduler.init_noise_sigma, t)
    return noisy, t.expand(len(noise))
