"""A list of metrics measured together: every image is embedded once, every neighbour searched once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rewards.alignment import ALIGNED_PIXELS, ALIGNMENT_CANDIDATES, CANDIDATES, aligned_neighbors
from rewards.duplicates import NEAR_DUPLICATE_RADIUS, duplicate_labels
from rewards.errors import InputError
from rewards.evidence import Evidence
from rewards.features import Embedding, embedding
from rewards.measurement import Measurement
from rewards.memorization.authenticity import Authenticity
from rewards.memorization.average_minimum_distance import AverageMinimumDistance
from rewards.memorization.copy_rate import CopyRate
from rewards.memorization.data_copying import DataCopying
from rewards.memorization.extraction import Extraction
from rewards.memorization.inversion import Inversion, InversionSuccess
from rewards.memorization.membership import Membership, MembershipTPR
from rewards.memorization.nearest_ratio import NearestRatio
from rewards.memorization.noise_magnitude import NoiseMagnitude
from rewards.memorization.normalized_l2 import NormalizedL2
from rewards.metric import Need, RewardMetric
from rewards.neighbors import Neighbors, nearest_neighbors
from rewards.quality.density_coverage import Coverage, Density
from rewards.quality.feature_likelihood_gap import FeatureLikelihoodGap
from rewards.quality.fid import FID
from rewards.quality.kid import KID
from rewards.quality.precision_recall import Precision, Recall
from rewards.quality.text_image_alignment import TextImageAlignment
from rewards.reference import Reference
from rewards.sample import Sample

METRICS: Mapping[str, type[RewardMetric]] = {
    metric.name: metric
    for metric in (
        AverageMinimumDistance,
        CopyRate,
        NearestRatio,
        NormalizedL2,
        Extraction,
        Authenticity,
        DataCopying,
        Membership,
        MembershipTPR,
        NoiseMagnitude,
        Inversion,
        InversionSuccess,
        KID,
        FID,
        Precision,
        Recall,
        Density,
        Coverage,
        FeatureLikelihoodGap,
        TextImageAlignment,
    )
}
"""Every metric there is, by the name that configurations and results use."""


_SEARCH_BYTES = 1 << 30
"""Room for a search: training sets that fit are searched in one piece, and then the fewest pairs are looked at."""


def is_memorization(metric: str) -> bool:
    """True for metrics of memorization, False for those of quality."""
    return METRICS[metric].__module__.startswith("rewards.memorization.")


class Suite:
    """Measures the named metrics, in their order.

    Args:
        names: Keys of `METRICS`.
        settings: Arguments of a metric's constructor, by metric, for example ``{"copy_rate": {"rate": 0.05}}``.
        duplicate_radius: Training images nearer than this count as one, see `rewards.duplicates.near_duplicates`.
        embed: Gives the embedding of a name.

    Raises:
        InputError: If a metric, one of its settings or an embedding is unknown, or a setting is out of range.
    """

    def __init__(
        self,
        names: Sequence[str],
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        duplicate_radius: float = NEAR_DUPLICATE_RADIUS,
        embed: Callable[[str], Embedding] = embedding,
    ) -> None:
        settings = settings or {}
        self._radius = duplicate_radius
        unknown = [name for name in (*names, *settings) if name not in METRICS]
        if unknown or not names:
            raise InputError(f"metrics {unknown or list(names)} are unknown", f"choose among {', '.join(METRICS)}")
        self.metrics = {name: _configured(name, settings.get(name, {})) for name in names}
        every = self.metrics.values()
        self._distances = dict.fromkeys(name for metric in every for name in metric.distances)
        searched = [name for name in self._distances if name != ALIGNED_PIXELS]
        if ALIGNED_PIXELS in self._distances:
            searched += ALIGNMENT_CANDIDATES
        embedded = dict.fromkeys([name for metric in every for name in metric.embeddings] + searched)
        self._embeddings = {name: embed(name) for name in embedded}

    @property
    def needs(self) -> frozenset[Need]:
        """What its metrics look at, all together: ``images``, and fields of `Evidence`."""
        return frozenset().union(*(metric.needs for metric in self.metrics.values()))

    def reference(self, train: Tensor, judge: Tensor) -> Reference:
        """Embeds real images and measures every null on them: once a task.

        Args:
            train: uint8 ``(n, 3, h, w)``: the private training set.
            judge: uint8 ``(m, 3, h, w)``: held-out images (in a search) or test images (in the final table).

        Raises:
            InputError: If one of them is empty.
        """
        if not len(train) or not len(judge):
            raise InputError(
                f"{len(train)} training and {len(judge)} held-out images", "give at least one of each to measure with"
            )
        embedded = self._embeddings.items()
        bare = Reference(
            train_images=train,
            judge_size=len(judge),
            labels=torch.from_numpy(duplicate_labels(train.permute(0, 2, 3, 1).numpy(), self._radius)),
            train={name: features(train) for name, features in embedded},
            flipped_train={name: features(train.flip(-1)) for name, features in embedded},
            judge={name: features(judge) for name, features in embedded},
            judge_neighbors={},
            train_neighbors={},
        )
        reference = replace(
            bare,
            judge_neighbors=self._neighbors(bare, judge, bare.judge),
            train_neighbors=self._train_neighbors(bare),
        )
        return replace(reference, nulls={name: metric.null(reference) for name, metric in self.metrics.items()})

    def measure(
        self, reference: Reference, generated: Tensor | None = None, evidence: Evidence | None = None
    ) -> dict[str, Measurement]:
        """Every metric, by name; one that lacks something has no value and a note that says what.

        Args:
            reference: Of this suite.
            generated: uint8 ``(n, 3, h, w)``, or None if no image was generated.
            evidence: What else the model has shown.
        """
        sample = self.sample(reference, generated, evidence)
        return {name: metric.measure(sample) for name, metric in self.metrics.items()}

    def sample(self, reference: Reference, generated: Tensor | None = None, evidence: Evidence | None = None) -> Sample:
        """What `measure` measures: features and neighbours of the generated images."""
        images = reference.train_images[:0] if generated is None else generated
        features = {name: embedded(images) for name, embedded in self._embeddings.items()} if len(images) else {}
        neighbors = self._neighbors(reference, images, features) if len(images) else {}
        return Sample(reference, images, features, neighbors, evidence or Evidence())

    def _neighbors(self, reference: Reference, images: Tensor, features: Mapping[str, Tensor]) -> dict[str, Neighbors]:
        """The nearest distinct training images, by distance."""
        counts = {name: self._count(name, reference.distinct) for name in self._distances}
        return self._search(reference, images, features, counts)

    def _train_neighbors(self, reference: Reference) -> dict[str, Neighbors]:
        if reference.distinct < 2:
            return {}
        wanted = {name: 1 for m in self.metrics.values() if m.wants_train_neighbors for name in m.distances}
        return self._search(reference, reference.train_images, reference.train, wanted, exclude_self=True)

    def _search(
        self,
        reference: Reference,
        images: Tensor,
        features: Mapping[str, Tensor],
        counts: Mapping[str, int],
        exclude_self: bool = False,
    ) -> dict[str, Neighbors]:
        """So many nearest training images in each distance, or as many as there are."""
        aligned = ALIGNED_PIXELS in counts
        wanted = {name: count for name, count in counts.items() if name != ALIGNED_PIXELS}
        if aligned:
            wanted |= {name: max(CANDIDATES, wanted.get(name, 1)) for name in ALIGNMENT_CANDIDATES}
        found = {
            name: nearest_neighbors(
                features[name],
                reference.train[name],
                flipped_gallery=reference.flipped_train[name],
                k=min(reference.distinct - exclude_self, count),
                exclude_self=exclude_self,
                labels=reference.labels,
                max_bytes=_SEARCH_BYTES,
            )
            for name, count in wanted.items()
        }
        if aligned:
            candidates = torch.cat([found[name].indices[:, :CANDIDATES] for name in ALIGNMENT_CANDIDATES], dim=1)
            found[ALIGNED_PIXELS] = aligned_neighbors(images, reference.train_images, candidates)
        return found

    def _count(self, distance: str, distinct: int) -> int:
        """How many neighbours the metrics look at."""
        return max(metric.neighbors(distinct) for metric in self.metrics.values() if distance in metric.distances)


def _configured(name: str, settings: Mapping[str, Any]) -> RewardMetric:
    try:
        return METRICS[name](**settings)
    except TypeError as error:
        raise InputError(f"settings {dict(settings)} of metric {name}: {error}", "see the metric's class") from error
