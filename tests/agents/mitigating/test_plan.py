"""Which fine-tunes of the comparison of mitigations have the same trained weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agents.mitigating.plan import with_same_weights
from agents.study.laboratory import Cell, Laboratory
from envs.datasets.base import ImageSet


def laboratory(*, duplicates: bool) -> Any:
    """What the plan asks of one: its training images, two of them the same, and mitigations at defaults."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    if duplicates:
        pixels[3] = pixels[0]
    ids = ("a", "b", "c", "d")
    images = ImageSet(pixels, ids, ids, ("",) * 4, np.zeros(4, dtype=np.int64))
    own: Any = SimpleNamespace(settings=SimpleNamespace(mitigation_options={}), dataset=SimpleNamespace(train=images))
    own.mitigations = lambda names: Laboratory.mitigations(own, names)
    return own


@pytest.mark.parametrize(
    ("mitigations", "without_duplicates", "with_duplicates"),
    [
        ("", "", ""),
        ("deduplicate", "", "deduplicate"),
        ("guidance", "", ""),
        ("threshold_sampling", "", ""),
        ("augment", "augment", "augment"),
        ("prune_subspace", "prune_subspace", "prune_subspace"),
        ("iet,agc", "iet,agc", "iet,agc"),
        ("guidance,iet,deduplicate,agc", "iet,agc", "iet,deduplicate,agc"),
    ],
)
def test_what_leaves_the_weights_as_they_are(mitigations: str, without_duplicates: str, with_duplicates: str) -> None:
    for duplicates, expected in ((False, without_duplicates), (True, with_duplicates)):
        cell = Cell("lora", "chosen", 6, 1e-3, 1, mitigations)
        found = with_same_weights(cell, laboratory(duplicates=duplicates))
        assert found == Cell("lora", "chosen", 6, 1e-3, 1, expected)
