"""Feature-likelihood gap: are the training images more likely under what was generated than others are?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from rewards.calibration import CONFIDENCE, halves
from rewards.errors import InputError
from rewards.estimate import Estimate
from rewards.metric import RewardMetric
from rewards.reference import Reference
from rewards.sample import Sample

_FLOOR = 0.01
"""Least variance of a Gaussian, of 1 a dimension: else an exact copy would have an infinite likelihood."""

Source = Literal["generated", "train", "judge"]

_STATES: Mapping[Source, str] = {"generated": "generated", "train": "members", "judge": "others"}
"""In the order of the function's arguments; ``train`` is a method of every torch module."""

_STEPS = 100
_RISE = 1e-6
"""The fit ends when the log likelihood a dimension rises by less."""


def feature_likelihood_gap(generated: Tensor, train: Tensor, judge: Tensor, dimensions: int = 64) -> Estimate:
    """How much less the training images cost to describe by the generated ones than the judge's do: below 0 if copied.

    Jiralerspong et al. 2023 (arXiv:2302.04440): the density of generated images is a mixture of equally weighted
    isotropic Gaussians, one around each, whose variances give the training images their largest likelihood. The
    feature likelihood divergence of a set of images is their mean of -100/d log density less a constant; the gap is
    that of the training images minus that of the judge's, in which the constant cancels. Being fitted to the training
    images it is a little below 0 without any copying: compare it with its null. Both are about 0 for images unlike all
    real ones, so it says nothing of quality.

    What differs from the paper, for sets of a few hundred images:

    - Features are standardised by, and projected to the first principal components of, equally many training and
      judge's images. The paper standardises by training images; components of those alone spread them more than any
      other images, which hides copies.
    - Likelihoods are compared on just these images, so that the two sets differ in nothing but the training. The
      larger set is a sample with a fixed seed then; the fit uses all training images.
    - Variances are fitted by expectation maximisation from one common value; none is below 1/100 of the mean variance
      of a component.

    The interval is the percentile bootstrap's over the compared images, for the fitted density.

    Args:
        generated: Float ``(g, d)`` features, g > 0.
        train: Float ``(n, d)``, n > 1.
        judge: Float ``(m, d)``, m > 1: of other patients.
        dimensions: At most this many principal components.
    """
    size = min(len(train), len(judge))
    compared = [_drawn(images.double(), size) for images in (train, judge)]
    project = _Projection(torch.cat(compared), dimensions)
    centres, fitted, (seen, unseen) = project(generated), project(train), map(project, compared)
    d = centres.shape[1]
    variances = _fit(_squared_distances(fitted, centres), d)
    of_train, of_judge = (
        np.sort(-100 / d * _log_density(_squared_distances(images, centres), variances, d).numpy())
        for images in (seen, unseen)
    )
    interval = stats.bootstrap(
        (of_train, of_judge),
        lambda a, b, axis=-1: a.mean(axis) - b.mean(axis),
        n_resamples=2000,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=0,
    ).confidence_interval
    return Estimate(float(of_train.mean() - of_judge.mean()), float(interval.low), float(interval.high), 2 * size)


def _drawn(images: Tensor, size: int) -> Tensor:
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:size].sort().values]


class _Projection:
    """Standardises, turns to principal components, and scales these to a mean variance of 1."""

    def __init__(self, images: Tensor, dimensions: int) -> None:
        self._mean, spread = images.mean(0), images.std(0)
        self._spread = torch.where(spread > 0, spread, 1)
        given = (images - self._mean) / self._spread
        # The smaller of the two Gram matrices has the same eigenvalues: pixels are many more than images.
        wide = given.shape[1] > len(given)
        values, vectors = torch.linalg.eigh(given @ given.T if wide else given.T @ given)
        rank = int((values > 1e-10 * values[-1]).sum())
        kept = max(1, min(dimensions, rank))
        axes = given.T @ vectors[:, -kept:] if wide else vectors[:, -kept:]
        variance = values[-kept:].clamp(min=0).mean() / (len(given) - 1)
        scale = variance.sqrt() if variance > 0 else 1
        self._axes = torch.nn.functional.normalize(axes, dim=0) / scale

    def __call__(self, features: Tensor) -> Tensor:
        """Components ``(n, kept)`` of features ``(n, d)``."""
        return ((features.double() - self._mean) / self._spread) @ self._axes


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    # Centred already, and of variance 1: what products round away is far below the floor.
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp(min=0)


def _log_components(squared_distances: Tensor, variances: Tensor, d: int) -> Tensor:
    return -squared_distances / (2 * variances) - d / 2 * (2 * math.pi * variances).log()


def _log_density(squared_distances: Tensor, variances: Tensor, d: int) -> Tensor:
    return _log_components(squared_distances, variances, d).logsumexp(1) - math.log(len(variances))


def _fit(squared_distances: Tensor, d: int) -> Tensor:
    """Variances ``(g,)`` of most likelihood, by expectation maximisation, of distances ``(n, g)``."""
    common = (squared_distances.min(dim=1).values.mean() / d).clamp(min=_FLOOR)
    variances, last = common.expand(squared_distances.shape[1]), -math.inf
    for _ in range(_STEPS):
        components = _log_components(squared_distances, variances, d)
        densities = components.logsumexp(1, keepdim=True)
        mean = float(densities.mean())
        if mean - last < _RISE * d:
            break
        last = mean
        # In logarithms: a centre far from all training images has no share of any that a number could hold.
        shares = (components - densities).softmax(0)
        variances = ((shares * squared_distances).sum(0) / d).clamp(min=_FLOOR)
    return variances


class FeatureLikelihoodGap(RewardMetric):
    """`feature_likelihood_gap` of features given in pieces.

    Its null takes one half of the judge's images for generated ones and the other half for the judge's.

    Args:
        embedding: What features are taken of. A network's features put all images of a decoder that blurs far from
            all real ones, and then the gap is 0 whatever was copied; small pixels do not.
        dimensions: At most this many principal components of them, at least 1.
    """

    name = "feature_likelihood_gap"
    higher_is_better = True

    generated: list[Tensor]
    members: list[Tensor]
    others: list[Tensor]

    def __init__(self, embedding: str = "pixels_32", dimensions: int = 64) -> None:
        super().__init__([embedding])
        if dimensions < 1:
            raise InputError(f"{self.name}.dimensions={dimensions}", "set it to 1 or more")
        self.dimensions = dimensions
        for state in _STATES.values():
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, features: Tensor, source: Source) -> None:
        """Adds features ``(n, d)`` of generated, training or the judge's images."""
        getattr(self, _STATES[source]).append(features)

    def compute(self) -> Tensor:
        """The value so far."""
        generated, train, judge = (dim_zero_cat(getattr(self, state)) for state in _STATES.values())
        return torch.tensor(feature_likelihood_gap(generated, train, judge, self.dimensions).value)

    def shortfall(self, sample: Sample) -> str:
        """See `RewardMetric`."""
        sizes = sample.reference.train_size, sample.reference.judge_size
        return f"needs 2 training and 2 held-out images, got {sizes[0]} and {sizes[1]}" if min(sizes) < 2 else ""

    def estimate(self, sample: Sample) -> Estimate:
        """See `RewardMetric`."""
        return self._gap(sample.features[self.embeddings[0]], sample.reference, self._judge(sample.reference))

    def null(self, reference: Reference) -> float | None:
        """See `RewardMetric`."""
        one, other = halves(self._judge(reference))
        enough = len(one) > 0 and min(len(other), reference.train_size) > 1
        return self._gap(one, reference, other).value if enough else None

    def _judge(self, reference: Reference) -> Tensor:
        return reference.judge[self.embeddings[0]]

    def _gap(self, generated: Tensor, reference: Reference, judge: Tensor) -> Estimate:
        return feature_likelihood_gap(generated, reference.train[self.embeddings[0]], judge, self.dimensions)
