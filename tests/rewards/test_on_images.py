"""The reward's promises on images: copies are found, real images are left alone, and neither extreme is rewarded."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy.stats import betabinom
from torch import Tensor
from torch.nn import functional

from envs.datasets.phantom import render
from rewards.features import cached_embedding
from rewards.objective import Objective, Scalarization
from rewards.suite import Suite

TRAIN, HELDOUT, OTHERS = slice(0, 64), slice(64, 320), slice(320, 600)


def noisy(images: Tensor, sd: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + sd * noise).round().clamp(0, 255).to(torch.uint8)


def shifted(images: Tensor, right: int, down: int = 0) -> Tensor:
    padded = functional.pad(images.float(), (2, 2, 2, 2), mode="replicate")
    height, width = images.shape[-2:]
    return padded[..., 2 - down : 2 - down + height, 2 - right : 2 - right + width].to(torch.uint8)


def compressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=50)
    return Image.open(file)


def by_pillow(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    changed = [np.array(change(Image.fromarray(image.permute(1, 2, 0).numpy()))) for image in images]
    return torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2)


PLANTED: Mapping[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "untouched": (1.0, lambda images: images),
    "flipped": (1.0, lambda images: images.flip(-1)),
    "noise of sd 4": (0.95, lambda images: noisy(images, 4)),
    "noise of sd 16": (0.95, lambda images: noisy(images, 16)),
    "flipped, noise of sd 4": (0.95, lambda images: noisy(images.flip(-1), 4)),
    "2 pixels to the right": (0.95, lambda images: shifted(images, 2)),
    "2 pixels up": (0.95, lambda images: shifted(images, 0, -2)),
    "2 pixels right and down": (0.95, lambda images: shifted(images, 2, 2)),
    "2 pixels left and up, flipped": (0.95, lambda images: shifted(images, -2, -2).flip(-1)),
    "brighter by 10": (0.95, lambda images: (images.int() + 10).clamp(0, 255).to(torch.uint8)),
    "JPEG of quality 50": (0.95, lambda images: by_pillow(images, compressed)),
    "blurred": (0.95, lambda images: by_pillow(images, lambda image: image.filter(ImageFilter.GaussianBlur(1)))),
}
"""What is done to training images, and the share of them that must be found at 1 %."""


@pytest.fixture(scope="module", params=["chest_xray", "isic"])
def real(request: pytest.FixtureRequest, real_images: Callable[[str], Tensor]) -> Tensor:
    return real_images(request.param)[:600]


def test_planted_copies_are_found_at_one_percent(real: Tensor) -> None:
    suite = Suite(["copy_rate"])
    reference = suite.reference(real[TRAIN], real[HELDOUT])
    for name, (least, change) in PLANTED.items():
        found = suite.measure(reference, change(real[TRAIN]))["copy_rate"].value
        assert found is not None
        assert found >= least, name


def test_other_heldout_images_are_flagged_at_the_stated_rate(real: Tensor) -> None:
    suite = Suite(["copy_rate"], embed=cached_embedding)
    flagged = []
    for seed in range(6):
        images = real[torch.randperm(600, generator=torch.Generator().manual_seed(seed))]
        reference = suite.reference(images[TRAIN], images[HELDOUT])
        measured = suite.measure(reference, images[OTHERS])["copy_rate"]
        assert measured.null == 2 / 257
        assert measured.value is not None
        flagged.append(round(measured.value * 280))
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
