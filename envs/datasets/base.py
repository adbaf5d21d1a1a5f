"""Images with the truth about them that splitting, training and reporting need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DatasetCard:
    """Where images come from and what one may do with them.

    Attributes:
        source: One line: who made it, where to find it.
        licence: Its licence's name.
        synthetic: True if no real person is in it.
        notes: One line each: what was drawn, and what the loader changed. They end up in a run's ``data.json``.
    """

    source: str
    licence: str
    synthetic: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageSet:
    """Row i of every field belongs to image i.

    Attributes:
        images: uint8 RGB ``(n, height, width, 3)``.
        ids: Unique within the set.
        groups: The patient (or lesion) an image shows; images of one group never part ways in a split.
        captions: One a image; empty strings where there are none.
        labels: int64 ``(n,)``, -1 where unknown.
    """

    images: NDArray[np.uint8]
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    captions: tuple[str, ...]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> ImageSet:
        """The given rows, in the given order."""
        index = np.asarray(rows, dtype=np.int64)
        return ImageSet(
            self.images[index],
            tuple(self.ids[i] for i in index),
            tuple(self.groups[i] for i in index),
            tuple(self.captions[i] for i in index),
            self.labels[index],
        )


@dataclass(frozen=True)
class Reject:
    """An image that nothing was trained on, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class SplitDataset:
    """Train, held-out and test: no patient and no near-duplicate cluster in two of them.

    Attributes:
        name: The data set's name.
        card: Source and licence.
        train: What the model is fine-tuned on and must not give back.
        heldout: What the search compares with.
        test: What the final table compares with; no search ever sees it.
        split_sha256: Hash of the images, captions and their split.
        rejects: Images left out, with reasons.
        near_duplicates: Pairs of ids of different groups that were tied into one cluster.
    """

    name: str
    card: DatasetCard
    train: ImageSet
    heldout: ImageSet
    test: ImageSet
    split_sha256: str
    rejects: tuple[Reject, ...] = ()
    near_duplicates: tuple[tuple[str, str], ...] = ()
