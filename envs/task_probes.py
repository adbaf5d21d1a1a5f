"""What can be told about a task from its images and the base model before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.backbones.base import Backbone
from envs.batches import TrainingSet
from envs.losses import denoising_losses
from rewards.features.pixels import PixelEmbedding
from rewards.neighbors import nearest_neighbors


@dataclass(frozen=True)
class TaskProbes:
    """Of one data set and one base model.

    Attributes:
        loss_train: The base model's mean denoising loss of the training images.
        loss_heldout: Of as many held-out images.
        nearest_train: Median distance of a training image to the nearest other one, L2 / sqrt(CHW) of pixels in
            [0, 1]; None of a single image.
        nearest_heldout: Median distance of a held-out image to the nearest training image.
    """

    loss_train: float
    loss_heldout: float
    nearest_train: float | None
    nearest_heldout: float


def probe_task(
    backbone: Backbone,
    train: TrainingSet,
    heldout: TrainingSet,
    train_images: NDArray[np.uint8],
    heldout_images: NDArray[np.uint8],
    *,
    draws: int,
    seed: int,
) -> TaskProbes:
    """Measures the base model's losses and how near held-out images are to training images, flips included.

    Args:
        backbone: With its denoiser in its pretrained state.
        train: The private images, encoded.
        heldout: Images of other patients, encoded.
        train_images: The private images, ``(n, h, w, 3)``.
        heldout_images: Those of other patients, ``(m, h, w, 3)``.
        draws: Size of the (t, noise) grid; see `denoising_losses`.
        seed: Names the noises.
    """
    losses = [
        float(denoising_losses(backbone, data.latents, data.states, draws=draws, seed=seed).mean())
        for data in (train, heldout)
    ]
    embed = PixelEmbedding()
    images, others = (_as_tensor(given) for given in (train_images, heldout_images))
    features, flipped = embed(images), embed(images.flip(-1))
    between = None
    if len(images) > 1:
        found = nearest_neighbors(features, features, flipped_gallery=flipped, exclude_self=True)
        between = float(found.distances.median())
    across = nearest_neighbors(embed(others), features, flipped_gallery=flipped).distances
    return TaskProbes(losses[0], losses[1], between, float(across.median()))


def _as_tensor(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)
