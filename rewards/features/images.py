"""What embeddings do with images before anything else."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def check_images(images: Tensor) -> None:
    """Raises ValueError unless ``images`` is uint8 ``(n, 3, h, w)`` with at least one pixel each."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(f"images are uint8 (n, 3, h, w), got {images.dtype} {tuple(images.shape)}")


def resized(images: Tensor, size: int) -> Tensor:
    """float32 ``(n, 3, size, size)`` in 0...255, bilinear and antialiased; an image of that size stays as it is.

    In float32 before anything else: differences of uint8 would wrap around.
    """
    values = images.to(torch.float32)
    if images.shape[-2:] == (size, size):
        return values
    return functional.interpolate(values, (size, size), mode="bilinear", antialias=True)
