"""The reward's promises on images: copies are found, real images are left alone, and neither extreme is rewarded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

import pytest
import torch
from scipy.stats import betabinom
from torch import Tensor
from torch.nn import functional

from envs.datasets.phantom import render
from rewards.features import embedding
from rewards.memorization.copy_rate import copies, copy_threshold
from rewards.neighbors import nearest_neighbors
from rewards.objective import Objective, Scalarization
from rewards.suite import Suite

EMBEDDINGS = ("pixels", "efficientnet_lite0")
TRAIN, HELDOUT, OTHERS = slice(0, 64), slice(64, 320), slice(320, 600)


def noisy(images: Tensor, sd: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + sd * noise).round().clamp(0, 255).to(torch.uint8)


def shifted(images: Tensor, right: int, down: int = 0) -> Tensor:
    padded = functional.pad(images.float(), (right, 0, down, 0), mode="replicate")
    return padded[..., : images.shape[-2], : images.shape[-1]].to(torch.uint8)


PLANTED: Mapping[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "untouched": (1.0, lambda images: images),
    "flipped": (1.0, lambda images: images.flip(-1)),
    "noise of sd 4": (0.95, lambda images: noisy(images, 4)),
    "flipped, noise of sd 4": (0.95, lambda images: noisy(images.flip(-1), 4)),
    "shifted by 2 pixels": (0.8, lambda images: shifted(images, 2)),
    "brighter by 10": (0.95, lambda images: (images.int() + 10).clamp(0, 255).to(torch.uint8)),
}
"""What is done to training images, and the share of them that must be found at 1 %."""


@dataclass(frozen=True)
class Gallery:
    images: Tensor
    features: Mapping[str, Tensor]
    flipped: Mapping[str, Tensor]

    def distances(self, features: Mapping[str, Tensor], train: Tensor) -> Tensor:
        """To the nearest of the given training rows, in each embedding: ``(n, 2)``."""
        columns = [
            nearest_neighbors(
                features[name], self.features[name][train], flipped_gallery=self.flipped[name][train]
            ).distances
            for name in EMBEDDINGS
        ]
        return torch.cat(columns, dim=1)


def embedded(images: Tensor) -> dict[str, Tensor]:
    return {name: embedding(name)(images) for name in EMBEDDINGS}


@pytest.fixture(scope="module", params=["chest_xray", "isic"])
def gallery(request: pytest.FixtureRequest, real_images: Callable[[str], Tensor]) -> Gallery:
    images = real_images(request.param)[:600]
    return Gallery(images, embedded(images), embedded(images.flip(-1)))


def test_planted_copies_are_found_at_one_percent(gallery: Gallery) -> None:
    rows = torch.arange(600)
    null = gallery.distances({n: f[HELDOUT] for n, f in gallery.features.items()}, rows[TRAIN])
    for name, (least, change) in PLANTED.items():
        found = copies(gallery.distances(embedded(change(gallery.images[TRAIN])), rows[TRAIN]), null, 0.01)
        assert float(found.double().mean()) >= least, name


def test_other_heldout_images_are_flagged_at_the_stated_rate(gallery: Gallery) -> None:
    flagged = []
    for seed in range(10):
        rows = torch.randperm(600, generator=torch.Generator().manual_seed(seed))
        distances = gallery.distances({n: f[rows] for n, f in gallery.features.items()}, rows[TRAIN])
        flagged.append(int(copies(distances[OTHERS], distances[HELDOUT], 0.01).sum()))
        stated = copy_threshold(distances[HELDOUT], 0.01).rate
    assert stated == 2 / 257
    assert betabinom(280, 2, 255).sf(max(flagged) - 1) > 0.01 / len(flagged)
    assert sum(flagged) / (280 * len(flagged)) <= 0.015


@pytest.fixture(params=["chest_xray", "phantom"])
def private_and_unrelated(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    """Images of one source, no two of a patient, and images of something else."""
    if request.param == "chest_xray":
        read = request.getfixturevalue("real_images")
        return read("chest_xray")[:384], read("isic")[:128]
    private = render("radiograph", range(384), seed=0, site="clinic").images
    unrelated = render("lesion", range(128), seed=0, site="public").images
    return torch.from_numpy(private).permute(0, 3, 1, 2), torch.from_numpy(unrelated).permute(0, 3, 1, 2)


def test_neither_a_copycat_nor_an_unrelated_model_is_rewarded(private_and_unrelated: tuple[Tensor, Tensor]) -> None:
    private, unrelated = private_and_unrelated
    train, judge, heldout, more = private.split([64, 128, 128, 64])
    privacy = ("copy_rate", "average_minimum_distance")
    suite = Suite(["kid", *privacy])
    reference = suite.reference(train, judge)
    base = suite.measure(reference, unrelated)
    full = suite.measure(reference, torch.cat([train, more]))
    copycat = suite.measure(reference, train.repeat(2, 1, 1, 1))
    resampled = suite.measure(reference, heldout)
    for scalarization in get_args(Scalarization):
        objective = Objective(("kid",), privacy, scalarization).anchor(base, full)
        for preference in (0.25, 0.5, 0.75):
            best, *others = (objective.utility(objective.axes(m), preference) for m in (resampled, copycat, base, full))
            assert best > 0.85
            assert max(others) < best - 0.1
    assert objective.axes(copycat).privacy == 0
    assert objective.axes(base).quality == 0
