"""Public images few enough for unit tests."""

from __future__ import annotations

import numpy as np
import pytest

from envs.backbones.pretrain.stream import PublicImages
from envs.datasets.phantom import render


@pytest.fixture(scope="session")
def public() -> PublicImages:
    """Twelve training and five held-out images of 64 pixels, each with a caption of its own."""
    images = render("radiograph", range(17), seed=5).images
    return PublicImages(images[:12], tuple(f"chest x-ray {i}" for i in range(12)), np.ascontiguousarray(images[12:]))
