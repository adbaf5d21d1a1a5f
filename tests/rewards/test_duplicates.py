from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.distance import cdist

from envs.datasets.phantom import Kind, render
from rewards.duplicates import NEAR_DUPLICATE_RADIUS, duplicate_labels, near_duplicates
from rewards.errors import InputError

Images = NDArray[np.uint8]


def noise(n: int, size: int) -> Images:
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def brute_force(images: Images, radius: float) -> list[tuple[int, int]]:
    """The definition with other means: area averages of pixels repeated to a multiple of 16, scipy's distances."""

    def features(batch: Images) -> NDArray[np.float64]:
        n, size = batch.shape[:2]
        times = 16 // math.gcd(size, 16)
        block = size * times // 16
        fine = (batch / 255).repeat(times, axis=1).repeat(times, axis=2)
        small = fine.reshape(n, 16, block, 16, block, 3).mean(axis=(2, 4))
        return np.asarray(small - small.mean(axis=(1, 2, 3), keepdims=True)).reshape(n, -1)

    upright = features(images)
    distance = np.minimum(cdist(upright, upright), cdist(upright, features(images[:, :, ::-1]))) / np.sqrt(768)
    return [(int(i), int(j)) for i, j in np.argwhere(np.triu(distance <= radius, 1))]


def rows(pairs: NDArray[np.int64]) -> list[tuple[int, int]]:
    return [(int(i), int(j)) for i, j in pairs]


@pytest.mark.parametrize("size", [16, 40, 64])
@pytest.mark.parametrize("radius", [0.016, 0.05, 0.07])
def test_agrees_with_brute_force(size: int, radius: float) -> None:
    images = render("lesion", range(40), seed=0, size=size).images
    images = np.concatenate(
        [images, images[:5, :, ::-1], np.clip(images[5:9].astype(int) + 9, 0, 255).astype(np.uint8)]
    )
    expected = brute_force(images, radius)
    assert len(expected) >= 9
    assert rows(near_duplicates(images, radius)) == expected


def test_finds_pairs_across_chunks() -> None:
    images = noise(1100, 16)
    images[1070] = np.clip(images[3].astype(int) + 1, 0, 255)
    images[900] = images[520, :, ::-1]
    assert rows(near_duplicates(images)) == [(3, 1070), (520, 900)]


def test_identical_images_are_tied_to_the_first_even_at_radius_zero() -> None:
    images = noise(6, 64)
    images[4] = images[5] = images[1]
    images[3] = images[2]
    images[3, 0, 0, 0] ^= 1
    assert rows(near_duplicates(images, 0)) == [(1, 4), (1, 5)]
    assert rows(near_duplicates(images)) == [(1, 4), (1, 5), (2, 3)]


def test_no_images_have_no_pairs() -> None:
    assert near_duplicates(noise(0, 64)).shape == (0, 2)


@pytest.mark.parametrize("radius", [-0.1, float("nan"), float("inf")])
def test_a_radius_that_is_none_is_refused(radius: float) -> None:
    with pytest.raises(InputError, match="radius="):
        near_duplicates(noise(2, 16), radius)


def test_labels_are_chains_of_pairs_in_order_of_first_appearance() -> None:
    images = render("lesion", range(8), seed=0).images
    # 5 to 1 to 7: the ends are further than the radius from each other, and only the middle ties them.
    images[5] = np.clip(images[1].astype(int) + np.linspace(0, 15, 64).astype(int)[:, None, None], 0, 255)
    images[7] = np.clip(images[1].astype(int) - np.linspace(0, 15, 64).astype(int)[:, None, None], 0, 255)
    images[6] = images[2, :, ::-1]
    radius = 0.02
    assert rows(near_duplicates(images, radius)) == [(1, 5), (1, 7), (2, 6)]
    labels = duplicate_labels(images, radius)
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 1, 2, 3, 4, 1, 2, 1]
    assert duplicate_labels(images[::-1], radius).tolist() == [0, 1, 0, 2, 3, 1, 0, 4]


def test_labels_at_radius_zero_tie_identical_images_only() -> None:
    images = noise(6, 64)
    images[4] = images[5] = images[1]
    assert duplicate_labels(images, 0).tolist() == [0, 1, 2, 3, 1, 1]
    assert duplicate_labels(images[:0]).shape == (0,)
    assert duplicate_labels(images[:1]).tolist() == [0]


def jpeg(images: Images) -> Images:
    saved = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=50)
        saved.append(np.asarray(Image.open(buffer)))
    return np.stack(saved)


def shifted(amount: NDArray[np.float64] | float, images: Images) -> Images:
    return np.asarray(np.clip(np.rint(images.astype(np.float64) + amount), 0, 255), dtype=np.uint8)


COPIES: dict[str, Callable[[Images], Images]] = {
    "saved as JPEG": jpeg,
    "noisy": lambda x: shifted(np.random.default_rng(1).normal(0, 12, x.shape), x),
    "brighter": lambda x: shifted(10, x),
    "mirrored and noisy": lambda x: shifted(np.random.default_rng(2).normal(0, 8, x.shape), x[:, :, ::-1]),
}


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("name", ["chest_xray_64", "isic_64"])
def test_on_real_images_copies_are_tied_and_patients_are_not(real_data: Path, name: str, copy: str) -> None:
    with np.load(real_data / f"{name}.npz", allow_pickle=False) as file:
        images = file["images"][::4]
    images = np.repeat(images[..., None], 3, axis=-1) if images.ndim == 3 else images
    n = len(images)
    pairs = rows(near_duplicates(np.concatenate([images, COPIES[copy](images)])))
    true_pairs = [(i, j) for i, j in pairs if j == i + n]
    assert len(true_pairs) >= 0.98 * n
    # A copy may come near another image than its own; originals may not.
    assert not [(i, j) for i, j in pairs if j < n]


@pytest.mark.parametrize("kind", ["radiograph", "lesion"])
def test_no_phantom_is_another_ones_copy(kind: Kind) -> None:
    assert len(near_duplicates(render(kind, range(300), seed=0).images)) == 0


@pytest.mark.parametrize(("name", "nearest"), [("chest_xray_64", 0.046), ("isic_64", 0.022), ("nih_cxr_64", 0.050)])
def test_the_stated_distance_of_the_nearest_patients_is_right(real_data: Path, name: str, nearest: float) -> None:
    with np.load(real_data / f"{name}.npz", allow_pickle=False) as file:
        images, groups = file["images"], file["group"]
    images = np.repeat(images[..., None], 3, axis=-1) if images.ndim == 3 else images

    def strangers(radius: float) -> int:
        return sum(groups[i] != groups[j] for i, j in near_duplicates(images, radius))

    assert strangers(nearest - 0.0006) == 0
    assert strangers(nearest + 0.0006) >= 1
    assert nearest > NEAR_DUPLICATE_RADIUS
