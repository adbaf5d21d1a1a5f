"""The images of an audit: the training set, held-out images that have nothing to do with it, and their sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from envs.datasets.base import ImageSet
from envs.datasets.loose import read_image_set
from rewards.duplicates import duplicate_labels
from rewards.errors import InputError


@dataclass(frozen=True)
class RealImages:
    """What generated images are compared with.

    Attributes:
        train: What the model was trained on.
        heldout: Images of others: no patient and no near-duplicate in common with ``train``.
        shared: How many images were left out of ``heldout`` because they had.
    """

    train: ImageSet
    heldout: ImageSet
    shared: int


def read_real_images(train: str, heldout: str, size: int | None, radius: float) -> RealImages:
    """Reads both sets, see `read_image_set`, and takes from the held-out one whatever the training set has too.

    A training image among the held-out ones would set every threshold at the distance of a copy, so that no copy would
    be found.

    Args:
        train: Source of the training set.
        heldout: Source of the held-out images.
        size: See `read_image_set`.
        radius: Of near-duplicates, see `rewards.duplicates.near_duplicates`.

    Raises:
        InputError: If a set cannot be read, sizes differ, or one has fewer than two images (left).
    """
    private, others = read_image_set(train, size), read_image_set(heldout, size)
    check_same_size({"train": private, "heldout": others})
    patients = {group for group in private.groups if group}
    shared = {row for row, group in enumerate(others.groups) if group in patients}
    n = len(private)
    labels = duplicate_labels(np.concatenate([private.images, others.images]), radius)
    shared |= set(np.flatnonzero(np.isin(labels[n:], labels[:n])).tolist())
    left = others.take([row for row in range(len(others)) if row not in shared])
    for name, images, dropped in (("train", private, 0), ("heldout", left, len(shared))):
        if len(images) < 2:
            of = f" ({dropped} more are in the training set too)" if dropped else ""
            raise InputError(f"{name} has {len(images)} image{of}", "give two or more; hundreds make numbers sharp")
    return RealImages(private, left, len(shared))


def check_same_size(sets: dict[str, ImageSet]) -> None:
    """Raises InputError unless all images have one height and width."""
    sizes = {name: images.images.shape[1:3] for name, images in sets.items()}
    if len(set(sizes.values())) > 1:
        words = ", ".join(f"{name} {width}x{height}" for name, (height, width) in sizes.items())
        raise InputError(f"images differ in size: {words}", "set size=<pixels> to crop and resize all of them")


def image_hashes(images: NDArray[np.uint8]) -> tuple[str, ...]:
    """SHA-256 of each image's pixels: what results say instead of a file's name, which may be a patient's."""
    return tuple(hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest() for image in images)


def set_hash(hashes: Sequence[str]) -> str:
    """SHA-256 of a set of images, in order."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()
