from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.auditing.images import image_hashes, read_real_images, set_hash
from envs.datasets.phantom import render
from rewards.duplicates import NEAR_DUPLICATE_RADIUS
from rewards.errors import InputError


def phantoms(first: int, n: int) -> NDArray[np.uint8]:
    return render("radiograph", range(first, first + n), seed=0).images


def npz(path: Path, images: NDArray[np.uint8], **columns: list[str]) -> str:
    arrays: dict[str, Any] = {name: np.array(column) for name, column in columns.items()}
    np.savez(path, images=images, **arrays)
    return str(path)


def test_heldout_images_that_are_in_the_training_set_too_are_left_out(tmp_path: Path) -> None:
    train, others = phantoms(0, 4), phantoms(4, 6)
    brighter = (train[:1].astype(int) + 3).clip(0, 255).astype(np.uint8)
    heldout = np.concatenate([others, train[1:2], brighter, train[2:3, :, ::-1]])
    found = read_real_images(
        npz(tmp_path / "train.npz", train), npz(tmp_path / "heldout.npz", heldout), None, NEAR_DUPLICATE_RADIUS
    )
    assert found.shared == 3
    np.testing.assert_array_equal(found.heldout.images, others)
    np.testing.assert_array_equal(found.train.images, train)


def test_heldout_images_of_a_training_patient_are_left_out(tmp_path: Path) -> None:
    train = npz(tmp_path / "train.npz", phantoms(0, 3), group=["a", "b", ""])
    heldout = npz(tmp_path / "heldout.npz", phantoms(3, 4), group=["c", "b", "", "d"])
    found = read_real_images(train, heldout, None, NEAR_DUPLICATE_RADIUS)
    assert found.shared == 1
    assert found.heldout.groups == ("c", "", "d")


@pytest.mark.parametrize(("train", "heldout", "message"), [(1, 5, "train has 1 image"), (5, 1, "heldout has 1 image")])
def test_single_images_are_refused(tmp_path: Path, train: int, heldout: int, message: str) -> None:
    sets = npz(tmp_path / "train.npz", phantoms(0, train)), npz(tmp_path / "heldout.npz", phantoms(5, heldout))
    with pytest.raises(InputError, match=message):
        read_real_images(*sets, None, NEAR_DUPLICATE_RADIUS)


def test_a_training_set_given_twice_says_why_nothing_is_left(tmp_path: Path) -> None:
    train = npz(tmp_path / "train.npz", phantoms(0, 4))
    with pytest.raises(InputError, match=r"heldout has 0 image \(4 more are in the training set too\)"):
        read_real_images(train, train, None, NEAR_DUPLICATE_RADIUS)


def test_sizes_that_differ_are_named(tmp_path: Path) -> None:
    small = phantoms(5, 3)[:, ::2, ::2]
    sets = npz(tmp_path / "train.npz", phantoms(0, 3)), npz(tmp_path / "heldout.npz", small)
    with pytest.raises(InputError, match="train 64x64, heldout 32x32 — set size"):
        read_real_images(*sets, None, NEAR_DUPLICATE_RADIUS)
    assert read_real_images(*sets, 32, NEAR_DUPLICATE_RADIUS).train.images.shape == (3, 32, 32, 3)


def test_hashes_name_pixels_and_order() -> None:
    images = phantoms(0, 3)
    hashes = image_hashes(images)
    assert image_hashes(np.ascontiguousarray(images[::-1])) == hashes[::-1]
    assert len(set(hashes)) == 3
    assert set_hash(hashes) != set_hash(hashes[::-1])
