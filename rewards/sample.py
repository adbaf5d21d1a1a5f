"""What one fine-tuned model has shown of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rewards.neighbors import Neighbors
from rewards.reference import Reference


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
class Sample:
    """What the metrics of a suite share: embedded and searched once.

    Attributes:
        reference: What it is compared with.
        size: How many images were generated; 0 if none.
        features: Of the generated images ``(size, d)``, by embedding.
        neighbors: Their nearest training images, by embedding.
        losses: The models' denoising losses, or None.
    """

    reference: Reference
    size: int
    features: Mapping[str, Tensor]
    neighbors: Mapping[str, Neighbors]
    losses: DenoisingLosses | None
