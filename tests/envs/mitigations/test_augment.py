from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from envs.course import Training, one_learner
from envs.datasets import SplitDataset
from envs.datasets.base import ImageSet
from envs.mitigations import find_mitigations, iet
from envs.mitigations.augment import Augmentation, origins_of
from rewards.errors import InputError
from tests.envs.mitigations.conftest import Ward, losses_after, same

STILL = Augmentation(shift=0, rotate=0.0, scale=0.0, brightness=0.0, contrast=0.0, mirror=True)
"""Mirrors, and alters nothing else."""


@pytest.fixture
def images(clinic: SplitDataset) -> ImageSet:
    return clinic.train


def versions(images: ImageSet, seed: int = 0, **settings: Any) -> NDArray[np.uint8]:
    """``(copies, n, h, w, 3)`` of one alteration, without the images themselves."""
    altered = dataclasses.replace(STILL, mirror=False, **settings)
    made = altered.prepared(images, seed).images
    return made.reshape(1 + altered.copies, *images.images.shape)[1:]


def test_the_images_as_they_are_come_first_and_everything_about_them_goes_along(images: ImageSet) -> None:
    made, n = Augmentation(copies=2).prepared(images, 0), len(images)
    assert len(made) == 3 * n
    assert np.array_equal(made.images[:n], images.images)
    assert made.ids[:n] == images.ids
    assert len(set(made.ids)) == len(made)
    assert made.captions == images.captions * 3
    assert made.groups == images.groups * 3
    assert made.labels.tolist() == images.labels.tolist() * 3
    assert origins_of(made).tolist() == [*range(n)] * 3
    assert origins_of(images).tolist() == [*range(n)]


def test_versions_are_drawn_from_the_seed_and_more_of_them_leave_the_others_as_they_are(images: ImageSet) -> None:
    two, three = (Augmentation(copies=copies).prepared(images, 5).images for copies in (2, 3))
    assert np.array_equal(two, three[: len(two)])
    assert not np.array_equal(two, Augmentation(copies=2).prepared(images, 6).images)


def test_mirrored_one_time_in_two(images: ImageSet) -> None:
    made = dataclasses.replace(STILL, copies=20).prepared(images, 0).images[len(images) :]
    as_is = np.concatenate([images.images] * 20)
    mirrored = (made == as_is[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (made == as_is).all((1, 2, 3))).all(), "and nothing else"
    assert 0.3 < mirrored.mean() < 0.7


def test_a_shift_moves_whole_pixels_and_repeats_the_border(images: ImageSet) -> None:
    padded = np.pad(images.images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    places = [(down, across) for down in range(3) for across in range(3)]
    shifted = {place: padded[:, place[0] : place[0] + 32, place[1] : place[1] + 32] for place in places}
    seen = set()
    for version in versions(images, shift=1, copies=15):
        for row, image in enumerate(version):
            (place,) = [place for place in places if np.array_equal(shifted[place][row], image)]
            seen.add(place)
    assert seen == set(places), "all of them occur"


def disc(radius: float, across: float = 0.0, down: float = 0.0) -> ImageSet:
    """A white disc on black, off the centre by so much."""
    y, x = np.mgrid[:32, :32] - 15.5
    pixels = ((np.hypot(x - across, y - down) < radius) * 255).astype(np.uint8)
    return ImageSet(np.repeat(pixels[None, ..., None], 3, axis=3), ("a",), ("a",), ("",), np.zeros(1, dtype=np.int64))


def test_it_turns_about_the_centre(images: ImageSet) -> None:
    x, y = [], []
    for image in versions(disc(3, across=10), rotate=30.0, copies=40)[:, 0, :, :, 0] / 255.0:
        grid = np.mgrid[:32, :32] - 15.5
        down, across = (grid * image).sum((1, 2)) / image.sum()
        x.append(across)
        y.append(down)
    np.testing.assert_allclose(np.hypot(x, y), 10, atol=0.3)
    angles = np.degrees(np.arctan2(y, x))
    assert -31 < angles.min() < -20
    assert 20 < angles.max() < 31


def test_it_scales_about_the_centre() -> None:
    found = versions(disc(8), scale=0.2, copies=40)[:, 0, :, :, 0] / 255.0
    radii = np.sqrt(found.sum((1, 2)) / np.pi)
    assert 8 * np.exp(-0.2) - 0.3 < radii.min() < 7.2
    assert 8.9 < radii.max() < 8 * np.exp(0.2) + 0.3
    columns = np.arange(32) - 15.5
    np.testing.assert_allclose((found * columns).sum((1, 2)) / found.sum((1, 2)), 0, atol=0.1)


def test_brightness_adds_and_contrast_multiplies_about_the_mean() -> None:
    grey = disc(8)
    grey = dataclasses.replace(grey, images=(grey.images // 4 + 90).astype(np.uint8))
    low, high = grey.images.min(), grey.images.max()
    for version in versions(grey, brightness=0.1, copies=10):
        assert int(version.max()) - int(version.min()) == pytest.approx(int(high) - int(low), abs=1)
        assert abs(int(version.min()) - int(low)) <= 26
    for version in versions(grey, contrast=0.3, copies=10):
        assert version.mean() == pytest.approx(grey.images.mean(), abs=0.5)
        assert np.exp(-0.3) * 0.95 < np.ptp(version.astype(int)) / (int(high) - int(low)) < np.exp(0.3) * 1.05


def test_no_copies_is_plain_training(ward: Ward) -> None:
    chosen = {"augment": {"copies": 0}}
    assert ward.regimen(chosen).treatment.figures == {"augment.added": 0.0}
    assert same(ward.after(chosen), ward.after({})), "bit by bit"


def test_after_deduplication_and_with_every_other_place_to_act(ward: Ward) -> None:
    regimen = ward.regimen({"augment": {"copies": 2}, "deduplicate": {"radius": 0.005}, "agc": {}})
    assert regimen.treatment.figures == {"deduplicate.left_out": 0.0, "augment.added": 12.0}
    assert len(regimen.training_set.latents) == len(regimen.training_set.states) == 18


def test_versions_of_an_image_are_of_one_shard(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Tensor] = []

    def kept(training: Training, shards: Sequence[Tensor], rounds: int) -> Mapping[str, float]:
        found.extend(shards)
        return one_learner(training)

    monkeypatch.setattr(iet, "in_rounds", kept)
    chosen: dict[str, dict[str, Any]] = {"iet": {"shards": 2, "rounds": 1}}
    ward.treat(chosen)
    ward.treat({**chosen, "augment": {"copies": 2}})
    plain, augmented = found[:2], found[2:]
    for shard, images in zip(augmented, plain, strict=True):
        assert sorted(shard.tolist()) == sorted(row + 6 * version for row in images.tolist() for version in range(3))


def test_versions_are_no_images_that_a_shard_could_do_with(ward: Ward) -> None:
    with pytest.raises(InputError, match=r"mitigation\.iet\.shards=3: class 1 has 2 training images"):
        ward.regimen({"iet": {"shards": 3}, "augment": {}})


@pytest.mark.slow
def test_images_are_memorized_less(overfitting: Ward, by_heart: tuple[float, float]) -> None:
    """Their losses are higher, and less below those of held-out images, which are not."""
    heldout, train = losses_after(overfitting, {"augment": {"mirror": True, "copies": 7}})
    assert train.mean() > 1.15 * by_heart[1]
    assert heldout.mean() - train.mean() < 0.9 * (by_heart[0] - by_heart[1])
    assert heldout.mean() < 1.05 * by_heart[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"copies": -1},
        {"copies": 1.5},
        {"shift": 0.5},
        {"mirror": 1},
        {"rotate": 200},
        {"scale": -0.1},
        {"brightness": "0.1"},
        {"contrast": float("nan")},
    ],
)
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(InputError, match=rf"mitigation\.augment\.{name}="):
        find_mitigations({"augment": settings})


def test_copies_that_are_altered_in_no_way() -> None:
    nothing = {"shift": 0, "rotate": 0, "scale": 0, "brightness": 0, "contrast": 0}
    with pytest.raises(InputError, match=r"mitigation\.augment\.copies=3 — set it to 0, or one of mirror, shift"):
        find_mitigations({"augment": nothing})
    find_mitigations({"augment": {**nothing, "copies": 0}})
