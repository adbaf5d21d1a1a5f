"""Sampling images from the denoiser as it stands."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.backbones.base import Backbone, rows_at_once
from envs.seeding import torch_generator

_CHUNK = 64


class Steering:
    """What is done to a sampler; subclasses override what they need."""

    def states(self, backbone: Backbone, states: Tensor, empty_state: Tensor, noise: Tensor) -> Tensor:
        """Text states to sample with in place of the given ones, ``(n, tokens, width)``.

        Args:
            backbone: With the denoiser in the state to sample from.
            states: Of the captions.
            empty_state: ``(1, tokens, width)``.
            noise: That sampling starts from, ``(n, c, h, w)``, standard normal.
        """
        return states

    def output(self, scheduler: Any, noisy: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """What the denoiser is taken to put out, ``(n, c, h, w)``.

        Args:
            scheduler: Of diffusers, in the midst of sampling.
            noisy: Where the sampler is, ``(n, c, h, w)``.
            t: Timestep.
            output: Of the denoiser, guided by captions if that is asked for.
        """
        return output


def generate(
    backbone: Backbone,
    states: Tensor,
    empty_state: Tensor,
    *,
    steps: int,
    guidance_scale: float,
    seed: int,
    steerings: Sequence[Steering] = (),
) -> NDArray[np.uint8]:
    """The decoded images of `sample_latents`, uint8 RGB ``(n, height, width, 3)``; see there for the arguments.

    ``steerings`` act on the sampler, in their order.
    """
    noise, _ = starting_noise(backbone, len(states), seed)
    for steering in steerings:
        states = steering.states(backbone, states, empty_state, noise)
    latents = sample_latents(
        backbone,
        states,
        empty_state,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        steerings=steerings,
    )
    return backbone.decode_latents(latents)


@torch.inference_mode()
def sample_latents(
    backbone: Backbone,
    states: Tensor,
    empty_state: Tensor,
    *,
    steps: int,
    guidance_scale: float,
    seed: int,
    steerings: Sequence[Steering] = (),
) -> Tensor:
    """One scaled latent for each row of ``states``, ``(n, c, h, w)``.

    All noise of image i depends on ``seed`` and i alone, so every mask is sampled from the same noise.

    Args:
        backbone: With the denoiser in the state to sample from.
        states: Text states ``(n, tokens, width)``.
        empty_state: ``(1, tokens, width)``, for guidance.
        steps: Of the backbone's scheduler.
        guidance_scale: 1 for none; above 1, classifier-free guidance (Ho & Salimans, arXiv 2207.12598).
        seed: Names the noise.
        steerings: Of what the denoiser puts out.
    """
    noise, generators = starting_noise(backbone, len(states), seed)

    def predict(scaled: Tensor, t: Tensor, rows: slice) -> Tensor:
        condition = states[rows]
        if guidance_scale <= 1:
            return backbone.predict(scaled, t, condition)
        unconditional, conditional = both_predictions(backbone, scaled, t, condition, empty_state)
        return unconditional + guidance_scale * (conditional - unconditional)

    return denoise(backbone.scheduler, noise, predict, steps=steps, generators=generators, steerings=steerings)


def starting_noise(backbone: Backbone, n: int, seed: int) -> tuple[Tensor, list[torch.Generator]]:
    """Standard normal noise ``(n, c, h, w)``, and what each image's further noise comes from."""
    generators = [torch_generator(seed, "generate", i) for i in range(n)]
    noise = [torch.randn(backbone.latent_shape, generator=generator) for generator in generators]
    return torch.stack(noise).to(backbone.device), generators


def both_predictions(
    backbone: Backbone, scaled: Tensor, t: Tensor, condition: Tensor, empty_state: Tensor
) -> tuple[Tensor, Tensor]:
    """The denoiser's output without and with the condition, in one pass."""
    states = torch.cat([empty_state.expand_as(condition), condition])
    unconditional, conditional = backbone.predict(torch.cat([scaled, scaled]), t, states).chunk(2)
    return unconditional, conditional


def denoise(
    scheduler: Any,
    noise: Tensor,
    predict: Callable[[Tensor, Tensor, slice], Tensor],
    *,
    steps: int,
    generators: Sequence[torch.Generator],
    steerings: Sequence[Steering] = (),
) -> Tensor:
    """Where a sampler gets to from standard normal noise, the shape of ``noise``.

    Args:
        scheduler: Of diffusers; it is left as it is.
        noise: ``(n, c, h, w)``.
        predict: Of noisy latents as the denoiser takes them, a timestep of the scheduler and their rows, the output.
        steps: Of the scheduler.
        generators: One a row, for schedulers that draw on the way.
        steerings: Of the output.
    """
    latents, at_once = [], min(_CHUNK, rows_at_once(noise.shape[-1]))
    for start in range(0, len(noise), at_once):
        rows = slice(start, start + at_once)
        # A scheduler keeps a step counter and, some of them, past outputs: every chunk needs its own.
        own = copy.deepcopy(scheduler)
        own.set_timesteps(steps, device=noise.device)
        takes_noise = "generator" in inspect.signature(own.step).parameters
        drawn = {"generator": list(generators[rows])} if takes_noise and generators else {}
        x = noise[rows] * own.init_noise_sigma
        for t in own.timesteps:
            output = predict(own.scale_model_input(x, t), t, rows)
            for steering in steerings:
                output = steering.output(own, x, t, output)
            x = own.step(output, t, x, return_dict=False, **drawn)[0]
        latents.append(x)
    return torch.cat(latents)
