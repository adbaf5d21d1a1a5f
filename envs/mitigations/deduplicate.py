"""Deduplication: of images that are copies of each other one is trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from envs.datasets.base import ImageSet
from envs.mitigations.base import Mitigation, Stage, within
from rewards.duplicates import NEAR_DUPLICATE_RADIUS, duplicate_labels


@dataclass(frozen=True)
class Deduplication(Mitigation):
    """Of each cluster of near-duplicates the image whose id comes first in the alphabet stays.

    Carlini et al., USENIX Security 2023, arXiv 2301.13188: what occurs many times is memorized first. What counts as a
    near-duplicate, and what is not found, see `rewards.duplicates.near_duplicates`; a cluster is what a chain of them
    connects. Which image stays depends on the images alone, on no seed and no order; its own
    caption and label stay with it. The steps of a fine-tune are as many as without.

    Memorization is measured against all private images all the same, those that were left out included.

    The figure ``deduplicate.left_out`` is the number of images left out.

    Attributes:
        radius: Largest distance of near-duplicates, in [0, 1]; at 0 only identical images are.
    """

    radius: float = NEAR_DUPLICATE_RADIUS
    name: ClassVar[str] = "deduplicate"
    stage: ClassVar[Stage] = Stage.DATA
    source: ClassVar[str] = "Carlini et al., USENIX Security 2023, arXiv 2301.13188"
    # Debenedetti et al., arXiv 2309.05610, turn this into an attack.
    excludes: ClassVar[Mapping[str, str]] = {
        "dp_sgd": "whether an image is trained on depends on the others, and the guarantee does not count that"
    }

    def __post_init__(self) -> None:
        if not within(self.radius, 0.0, 1.0):
            raise self.refused("radius", f"set it to 0 to 1; the default is {NEAR_DUPLICATE_RADIUS}")

    def prepared(self, images: ImageSet, seed: int) -> ImageSet:
        """See `Mitigation.prepared`; what stays is in its old order, and is all there was if there is no duplicate."""
        first: dict[int, int] = {}
        for row, cluster in enumerate(duplicate_labels(images.images, self.radius).tolist()):
            other = first.setdefault(cluster, row)
            if images.ids[row] < images.ids[other]:
                first[cluster] = row
        return images if len(first) == len(images) else images.take(sorted(first.values()))

    def compared(self, before: ImageSet, after: ImageSet) -> Mapping[str, float]:
        """See `Mitigation.compared`."""
        return {"deduplicate.left_out": float(len(before) - len(after))}
