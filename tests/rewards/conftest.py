"""Real images as the reward's tests use them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def real_images(real_data: Path) -> Callable[[str], Tensor]:
    """Reads a set's images, one a patient, in an order drawn once: uint8 ``(n, 3, 64, 64)``."""

    def read(name: str) -> Tensor:
        with np.load(real_data / f"{name}_64.npz", allow_pickle=False) as columns:
            images, groups = columns["images"], columns["group"]
        first = np.unique(groups, return_index=True)[1]
        images = images[np.random.default_rng(0).permutation(first)]
        if images.ndim == 3:
            images = np.repeat(images[..., None], 3, axis=-1)
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    return read
