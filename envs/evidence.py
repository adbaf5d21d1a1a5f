"""What a model shows of a training set besides images, beside what it shows of held-out images."""

from __future__ import annotations

import torch

from envs.backbones.base import Backbone
from envs.datasets.base import ImageSet
from envs.probes import invert_images, noise_magnitudes
from rewards.evidence import Inversions, NoiseMagnitudes
from rewards.inversion import InversionResult, InversionSettings, Progress, Similarity

_GENERATIONS = 64


def caption_magnitudes(
    backbone: Backbone,
    train: ImageSet,
    heldout: ImageSet,
    *,
    steps: int,
    guidance_scale: float,
    seed: int,
) -> NoiseMagnitudes:
    """`noise_magnitudes` of one generation a training image, at most 64, and of as many from other captions.

    A held-out image whose caption a training image has too says nothing about captions that were not trained on.

    Args:
        backbone: With the denoiser in the state to ask.
        train: Images with the captions that it learned from.
        heldout: Images of other patients.
        steps: Of the backbone's sampler.
        guidance_scale: Of the generations; 1 is none.
        seed: Names the noise.
    """
    known = set(train.captions)
    captions = train.captions, [caption for caption in heldout.captions if caption not in known]
    found = [
        noise_magnitudes(backbone, some[:_GENERATIONS], steps=steps, guidance_scale=guidance_scale, seed=seed)
        for some in captions
    ]
    return NoiseMagnitudes(*found)


def inverted(
    backbone: Backbone,
    train: ImageSet,
    heldout: ImageSet,
    similarity: Similarity,
    settings: InversionSettings,
    progress: Progress | None = None,
) -> tuple[Inversions, tuple[list[InversionResult], list[InversionResult]]]:
    """`invert_images` of named training images and of held-out ones, and what it found of each.

    Args:
        backbone: With the denoiser in the state to ask.
        train: The training images to try.
        heldout: The held-out images to try.
        similarity: When a sample counts as an image.
        settings: Of the search.
        progress: Called with how many images are done, and of how many.
    """
    total = len(train) + len(heldout)
    results: list[list[InversionResult]] = []
    for images, before in ((train, 0), (heldout, len(train))):

        def report(done: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, total)

        results.append(invert_images(backbone, images.images, images.captions, similarity, settings, report))
    values = (torch.tensor([result.value for result in found]) for found in results)
    return Inversions(*values), (results[0], results[1])
