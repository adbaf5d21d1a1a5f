"""What one model has shown of itself, beside what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from rewards.evidence import Evidence
from rewards.neighbors import Neighbors
from rewards.reference import Reference


@dataclass(frozen=True, eq=False)
class Sample:
    """What the metrics of a suite share: embedded and searched once.

    Attributes:
        reference: What it is compared with.
        images: uint8 ``(n, 3, h, w)``: the generated images; n is 0 if there are none.
        features: Of the generated images ``(n, d)``, by embedding.
        neighbors: Their nearest distinct training images ``(n, k)``, by distance.
        evidence: Of the model itself.
    """

    reference: Reference
    images: Tensor
    features: Mapping[str, Tensor]
    neighbors: Mapping[str, Neighbors]
    evidence: Evidence

    @property
    def size(self) -> int:
        """How many images were generated."""
        return len(self.images)
