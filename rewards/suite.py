"""A list of metrics measured together: every image is embedded once, every neighbour searched once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from rewards.errors import InputError
from rewards.features import embedding
from rewards.measurement import Measurement
from rewards.memorization.average_minimum_distance import AverageMinimumDistance
from rewards.memorization.copy_rate import CopyRate
from rewards.memorization.membership import Membership, MembershipTPR
from rewards.metric import RewardMetric
from rewards.neighbors import nearest_neighbors
from rewards.quality.fid import FID
from rewards.quality.kid import KID
from rewards.quality.precision_recall import Precision, Recall
from rewards.reference import Reference
from rewards.sample import DenoisingLosses, Sample

METRICS: Mapping[str, type[RewardMetric]] = {
    metric.name: metric
    for metric in (AverageMinimumDistance, CopyRate, Membership, MembershipTPR, KID, FID, Precision, Recall)
}
"""Every metric there is, by the name that configurations and results use."""


class Suite:
    """Measures the named metrics, in their order.

    Args:
        names: Keys of `METRICS`.
        settings: Arguments of a metric's constructor, by metric, for example ``{"copy_rate": {"rate": 0.05}}``.

    Raises:
        InputError: If a metric, one of its settings or an embedding is unknown, or a setting is out of range.
    """

    def __init__(self, names: Sequence[str], settings: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        settings = settings or {}
        unknown = [name for name in (*names, *settings) if name not in METRICS]
        if unknown or not names:
            raise InputError(f"metrics {unknown or list(names)} are unknown", f"choose among {', '.join(METRICS)}")
        self.metrics = {name: _configured(name, settings.get(name, {})) for name in names}
        self._embeddings = {name: embedding(name) for metric in self.metrics.values() for name in metric.embeddings}

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
        features = {name: embed(train) for name, embed in embedded}
        flipped = {name: embed(train.flip(-1)) for name, embed in embedded}
        judged = {name: embed(judge) for name, embed in embedded}
        distances = {
            name: nearest_neighbors(judged[name], features[name], flipped_gallery=flipped[name]).distances[:, 0]
            for name in features
        }
        reference = Reference(len(train), len(judge), features, flipped, judged, distances)
        return replace(reference, nulls={name: metric.null(reference) for name, metric in self.metrics.items()})

    def measure(
        self, reference: Reference, generated: Tensor | None = None, losses: DenoisingLosses | None = None
    ) -> dict[str, Measurement]:
        """Every metric, by name; one that lacks something has no value and a note that says what.

        Args:
            reference: Of this suite.
            generated: uint8 ``(n, 3, h, w)``, or None if no image was generated.
            losses: Denoising losses, or None if there are none.
        """
        size = 0 if generated is None else len(generated)
        features = {} if generated is None else {name: embed(generated) for name, embed in self._embeddings.items()}
        neighbors = {
            name: nearest_neighbors(found, reference.train[name], flipped_gallery=reference.flipped_train[name])
            for name, found in features.items()
        }
        sample = Sample(reference, size, features, neighbors, losses)
        return {name: metric.measure(sample) for name, metric in self.metrics.items()}


def _configured(name: str, settings: Mapping[str, Any]) -> RewardMetric:
    try:
        return METRICS[name](**settings)
    except TypeError as error:
        raise InputError(f"settings {dict(settings)} of metric {name}: {error}", "see the metric's class") from error
