"""Images to fine-tune on, to compare with, and to judge by: loaded, checked, and split by patient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from envs.datasets.base import DatasetCard, ImageSet, Reject, SplitDataset
from envs.datasets.options import text
from envs.datasets.sources import load_dataset, read_source
from envs.datasets.splits import SPLITS, check_disjoint, split
from rewards.duplicates import NEAR_DUPLICATE_RADIUS, near_duplicates
from rewards.errors import InputError

__all__ = [
    "NEAR_DUPLICATE_RADIUS",
    "SPLITS",
    "DatasetCard",
    "ImageSet",
    "Reject",
    "SplitDataset",
    "check_disjoint",
    "load_dataset",
    "near_duplicates",
    "prepare_dataset",
    "split",
]


def prepare_dataset(
    name: str,
    *,
    root: Path | None,
    size: int,
    train: int,
    heldout: int,
    test: int,
    seed: int,
    radius: float,
    options: Mapping[str, Any],
) -> SplitDataset:
    """Loads a data set, checks every image and splits it.

    Args:
        name: See `load_dataset`, as for ``root``, ``size`` and ``options``.
        root: ``data.root``, or None.
        size: Height and width of the images.
        train: Images in the split, see `split`, as for the next four.
        heldout: Images in the split.
        test: Images in the split.
        seed: Of the draw.
        radius: Of near-duplicates.
        options: The source's own, and two that every source takes: ``use_split=True`` keeps to the splits that the
            source declares, ``caption`` is what an image without a caption gets.

    Raises:
        InputError: See `load_dataset` and `split`.
    """
    own = {key: value for key, value in options.items() if key != "caption"}
    checked, card = read_source(name, root=root, size=size, options=own)
    caption = text(options, "caption", "")
    images = replace(checked.images, captions=tuple(given or caption for given in checked.images.captions))
    use_split = options.get("use_split", False)
    if not isinstance(use_split, bool):
        raise InputError(f"use_split={use_split!r}", "set it to true or false")
    return split(
        name,
        images,
        card,
        train=train,
        heldout=heldout,
        test=test,
        seed=seed,
        radius=radius,
        rejects=checked.rejects,
        declared=checked.declared if use_split else None,
    )
