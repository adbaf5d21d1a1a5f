from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from torch import Tensor

from rewards.evidence import Evidence
from rewards.memorization.authenticity import Authenticity, authenticity
from rewards.neighbors import Neighbors, nearest_neighbors
from rewards.reference import Reference
from rewards.sample import Sample


def points(n: int, seed: int) -> Tensor:
    return torch.rand(n, 6, generator=torch.Generator().manual_seed(seed))


def reference(train: Tensor, judge: Tensor, labels: Tensor | None = None) -> Reference:
    labels = torch.arange(len(train)) if labels is None else labels
    own: Mapping[str, Neighbors] = {}
    if int(labels.max()) > 0:
        own = {"lite": nearest_neighbors(train, train, exclude_self=True, labels=labels)}
    found = {"lite": nearest_neighbors(judge, train, labels=labels)}
    return Reference(train, len(judge), labels, {}, {}, {}, found, own, {"authenticity": None})


def value(generated: Tensor, known: Reference) -> float | None:
    found = {"lite": nearest_neighbors(generated, known.train_images, labels=known.labels)}
    return Authenticity("lite").measure(Sample(known, generated, {}, found, Evidence())).value


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99))
def test_is_the_share_by_brute_force(seed: int) -> None:
    train, own = points(15, seed), points(30, seed + 100)
    between, among = cdist(own.double(), train.double()), cdist(train.double(), train.double())
    np.fill_diagonal(among, np.inf)
    expected = np.mean(between.min(1) > among[between.argmin(1)].min(1))
    known = reference(train, own)
    assert value(own, known) == pytest.approx(expected)
    assert Authenticity("lite").null(known) == pytest.approx(expected)


def test_extremes() -> None:
    train = points(40, 0)
    known = reference(train, points(100, 1))
    null = Authenticity("lite").null(known)
    assert null is not None
    assert 0.2 < null < 0.8
    assert value(train, known) == 0
    assert value(train + 0.001, known) == 0
    assert value(points(100, 2), known) == pytest.approx(null, abs=0.2)
    assert value(points(100, 2) + 10, known) == 1


def test_duplicates_do_not_pass_noisy_copies_off_as_authentic() -> None:
    train = points(20, 0)
    twice, labels = torch.cat([train, train + 0.001]), torch.arange(20).repeat(2)
    copies = train - 0.01
    assert value(copies, reference(twice, train)) == 1
    assert value(copies, reference(twice, train, labels)) == 0


def test_as_far_is_not_further() -> None:
    assert authenticity(torch.tensor([0.0, 0.5, 0.6]), torch.tensor([0.0, 0.5, 0.5])).value == pytest.approx(1 / 3)
    estimate = authenticity(torch.ones(10), torch.zeros(10))
    assert estimate.low is not None
    assert 0 < estimate.low < estimate.value == estimate.high == 1
    assert estimate.n == 10


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 19), seed=st.integers(0, 99))
def test_neither_order_nor_pieces_matter(cut: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    distances, spacings = torch.rand(2, 20, generator=generator)
    order = torch.randperm(20, generator=generator)
    metric = Authenticity("lite")
    metric.update(distances[order][:cut], spacings[order][:cut])
    metric.update(distances[order][cut:], spacings[order][cut:])
    assert float(metric.compute()) == pytest.approx(authenticity(distances, spacings).value)


def test_one_distinct_training_image_has_no_neighbour() -> None:
    known = reference(points(2, 0), points(5, 1), torch.zeros(2, dtype=torch.int64))
    metric = Authenticity("lite")
    found = {"lite": nearest_neighbors(points(3, 2), points(2, 0))}
    measured = metric.measure(Sample(known, points(3, 2), {}, found, Evidence()))
    assert metric.null(known) is None
    assert measured.value is None
    assert measured.note == "needs 2 distinct training images, got 1"


def test_more_authentic_is_better() -> None:
    assert Authenticity.higher_is_better is True
    assert Authenticity.wants_train_neighbors is True
    assert (Authenticity.plot_lower_bound, Authenticity.plot_upper_bound) == (0, 1)
