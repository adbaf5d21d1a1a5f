"""What a model shows of itself besides images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DenoisingLosses:
    """Mean denoising loss of each image over one fixed grid of (t, noise), the same for both models.

    Attributes:
        train: ``(n,)``: of the fine-tuned model on the images it was trained on.
        heldout: ``(m,)``: on images of other patients from the same source.
        base_train: ``(n,)``: of the model before fine-tuning on the same images as ``train``.
        base_heldout: ``(m,)``: on the same images as ``heldout``.

    Raises:
        ValueError: If a field is empty, not one-dimensional or not finite, or base and fine-tuned sizes differ.
    """

    train: Tensor
    heldout: Tensor
    base_train: Tensor
    base_heldout: Tensor

    def __post_init__(self) -> None:
        losses = {f.name: getattr(self, f.name) for f in fields(self)}
        shapes = {name: tuple(t.shape) for name, t in losses.items()}
        if any(t.ndim != 1 or len(t) == 0 for t in losses.values()):
            raise ValueError(f"denoising losses are vectors of one loss an image, got shapes {shapes}")
        if len(self.train) != len(self.base_train) or len(self.heldout) != len(self.base_heldout):
            raise ValueError(f"base and fine-tuned losses are of the same images, got shapes {shapes}")
        if not all(bool(torch.isfinite(t).all()) for t in losses.values()):
            raise ValueError("denoising losses are finite, got NaN or infinity")

    @property
    def train_change(self) -> Tensor:
        """Fine-tuned minus base: how much easier each training image became if negative."""
        return self.train.double() - self.base_train.double()

    @property
    def heldout_change(self) -> Tensor:
        """The same of held-out images."""
        return self.heldout.double() - self.base_heldout.double()


@dataclass(frozen=True, eq=False)
class NoiseMagnitudes:
    """How much a caption pulls at the denoiser: one number a generation, see `rewards.memorization.noise_magnitude`.

    Attributes:
        train: ``(n,)``: generations from captions that the model was trained on.
        heldout: ``(m,)``: from captions of other patients; empty if all of them are training captions too.
    """

    train: Tensor
    heldout: Tensor


@dataclass(frozen=True, eq=False)
class Inversions:
    """What inverting named images found, see `rewards.inversion`.

    Attributes:
        train: ``(n,)``: the measure of each training image tried, infinity where it was not reproduced.
        heldout: ``(m,)``: the same of held-out images.
    """

    train: Tensor
    heldout: Tensor


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a model has shown besides images; None for what was not looked at.

    Attributes:
        losses: Denoising losses.
        prompts: One a generated image: the caption it was generated from.
        noise_magnitudes: Of conditional models.
        inversions: Of named images.
    """

    losses: DenoisingLosses | None = None
    prompts: Sequence[str] | None = None
    noise_magnitudes: NoiseMagnitudes | None = None
    inversions: Inversions | None = None
