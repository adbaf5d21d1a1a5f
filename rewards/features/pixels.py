"""Pixels as features."""

from __future__ import annotations

import hashlib

from torch import Tensor

from rewards.features.images import check_images, resized


class PixelEmbedding:
    """The pixels themselves in [0, 1], so that L2 / sqrt(d) is the root mean square difference of two images.

    Args:
        size: Images of another height or width are resized to ``size`` x ``size`` first. A smaller one blurs, which
            takes noise away and is a quarter of the work.
    """

    def __init__(self, size: int = 64) -> None:
        self._size = size
        self.name = "pixels" if size == 64 else f"pixels_{size}"
        self.dimensions = 3 * size * size
        self.fingerprint = hashlib.sha256(f"pixels size={size}".encode()).hexdigest()

    def __call__(self, images: Tensor) -> Tensor:
        """See `Embedding`."""
        check_images(images)
        return (resized(images.cpu().contiguous(), self._size) / 255).flatten(1)
