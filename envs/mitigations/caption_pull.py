"""How much a caption changes what the denoiser puts out, and how much is usual: what two mitigations go by."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from envs.backbones.base import Backbone, rows_at_once
from envs.datasets.base import ImageSet
from envs.mitigations.base import Situation
from rewards.calibration import threshold
from rewards.errors import InputError
from rewards.memorization.noise_magnitude import noise_magnitude


def caption_pull(with_caption: Tensor, without: Tensor) -> Tensor:
    """||out(x_t, caption) - out(x_t, "")||_2 / sqrt(dimensions) of each row, ``(n,)``.

    Of a model that predicts noise, this is the text-conditional noise of Wen et al. (ICLR 2024), per dimension as in
    `rewards.memorization.noise_magnitude`: their 3 for Stable Diffusion's latents is 3 / 128 here. Of other models it
    is still their outputs that are compared. In noise the difference is sqrt(signal) times as large for v, and so it
    is 0 at the first step of a sampler that starts without any signal, whatever the caption does to the image.

    Args:
        with_caption: The denoiser's output, ``(n, c, h, w)``.
        without: Of the same noisy latents with the empty caption.
    """
    return noise_magnitude((with_caption - without).flatten(1).norm(dim=1)[None], with_caption[0].numel())


@torch.no_grad()
def caption_pulls(backbone: Backbone, noisy: Tensor, t: Tensor, states: Tensor, empty_state: Tensor) -> Tensor:
    """`caption_pull` of each row, ``(n,)``: two forward passes.

    Args:
        backbone: With the denoiser in the state to ask.
        noisy: As the denoiser takes them, ``(n, c, h, w)``.
        t: Timesteps, ``(n,)``.
        states: Of the captions, ``(n, tokens, width)``.
        empty_state: ``(1, tokens, width)``.
    """
    found, rows = [noisy.new_zeros(0)], rows_at_once(noisy.shape[-1])
    # Whatever is compiled is so for training; here shapes change from batch to batch.
    with backbone.eager():
        for some, at, condition in zip(noisy.split(rows), t.split(rows), states.split(rows), strict=True):
            both = torch.cat([condition, empty_state.expand_as(condition)])
            with_caption, without = backbone.predict(torch.cat([some, some]), torch.cat([at, at]), both).chunk(2)
            found.append(caption_pull(with_caption, without))
    return torch.cat(found)


def usual_limit(pulls: Tensor, quantile: float) -> float:
    """The pull that a held-out caption exceeds with a probability of at most 1 - ``quantile``.

    See `rewards.calibration.threshold`: of few pulls it is the largest.

    Args:
        pulls: Of held-out captions, ``(n,)``, n > 0.
        quantile: In (0, 1).
    """
    return -threshold(-pulls.cpu(), 1 - quantile).value


def heldout_rows(name: str, situation: Situation, draws: int, generator: torch.Generator) -> Tensor:
    """Rows of ``draws`` held-out images with captions, all of them in turn in a random order, int64 ``(draws,)``.

    Raises:
        InputError: If there is none; ``name`` is the mitigation's.
    """
    rows = torch.tensor([i for i, caption in enumerate(situation.heldout.captions) if caption.strip()])
    if not len(rows):
        raise InputError(
            f"mitigation={name} calibrates on held-out captions, and there is none",
            "hold out images with captions, or set the threshold itself",
        )
    order = rows[torch.randperm(len(rows), generator=generator)]
    return order.repeat(-(-draws // len(order)))[:draws]


def check_captions(name: str, images: ImageSet) -> None:
    """Raises InputError if no training image has a caption; ``name`` is the mitigation's."""
    if not any(_captioned(images.captions)):
        raise InputError(
            f"mitigation={name} works on captions, and none of the {len(images)} training images has one",
            "choose another mitigation or data with captions",
        )


def _captioned(captions: Iterable[str]) -> Iterable[bool]:
    return (bool(caption.strip()) for caption in captions)
