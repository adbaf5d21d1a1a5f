from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from scipy.stats import mannwhitneyu, norm
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from rewards.errors import InputError
from rewards.evidence import Evidence
from rewards.memorization.data_copying import DataCopying, _axes, cells, data_copying
from rewards.neighbors import nearest_neighbors
from rewards.reference import Reference
from rewards.sample import Sample


def z_score(generated: Tensor, heldout: Tensor) -> float:
    """By SciPy, from its p-value."""
    p = mannwhitneyu(
        generated.numpy(), heldout.numpy(), alternative="less", method="asymptotic", use_continuity=False
    ).pvalue
    return float(norm.ppf(p))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), levels=st.sampled_from([3, 20, 10**6]))
def test_is_scipys_mann_whitney_in_each_cell_with_ties(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (torch.from_numpy(rng.integers(0, levels, n)).double() for n in (90, 50))
    a_cells, b_cells = (torch.from_numpy(np.repeat([0, 1, 2], x)) for x in ([50, 25, 15], [20, 15, 15]))
    estimate = data_copying(a, b, a_cells, b_cells)
    # The third cell has less than 20 generated images.
    expected = [z_score(a[a_cells == cell], b[b_cells == cell]) for cell in (0, 1)]
    assert estimate.value == pytest.approx((20 * expected[0] + 15 * expected[1]) / 35, abs=1e-6)
    assert estimate.n == 75
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low <= estimate.value <= estimate.high


def test_the_interval_holds_the_expectation_as_often_as_stated() -> None:
    rng = np.random.default_rng(0)
    a_cells, b_cells = torch.arange(80) % 2, torch.arange(60) % 2

    def draw() -> tuple[float, float, float]:
        a, b = rng.normal(0.7, 1, 80), rng.normal(0, 1, 60)
        value, low, high, _ = data_copying(torch.from_numpy(a), torch.from_numpy(b), a_cells, b_cells)
        assert low is not None
        assert high is not None
        return value, low, high

    values, low, high = np.array([draw() for _ in range(400)]).T
    held = np.mean((low < values.mean()) & (values.mean() < high))
    assert held == pytest.approx(0.95, abs=0.03)


def test_apart_and_equal() -> None:
    one = torch.zeros(40, dtype=torch.int64)
    less, more = torch.linspace(0, 1, 40), torch.linspace(2, 3, 40)
    copied = data_copying(less, more, one, one)
    assert copied.value == copied.low == copied.high
    assert copied.value < -7
    assert data_copying(more, less, one, one).value == pytest.approx(-copied.value)
    assert data_copying(torch.ones(40), torch.ones(40), one, one) == (0, 0, 0, 40)


def test_without_a_cell_large_enough_there_is_no_value() -> None:
    one = torch.zeros(19, dtype=torch.int64)
    with pytest.raises(ValueError, match="no cell has 20 generated and 2 held-out"):
        data_copying(torch.ones(19), torch.ones(19), one, one)


def blobs(n: int, dimensions: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features around three far corners, and which corner."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(0, 3, (n,), generator=generator)
    corners = 20 * torch.randn(3, dimensions, generator=torch.Generator().manual_seed(99))
    return corners[which] + torch.randn(n, dimensions, generator=generator), which


@pytest.mark.parametrize(("n", "dimensions"), [(30, 2), (30, 100), (200, 100), (60, 64)])
def test_cells_are_the_clusters_of_the_training_set(n: int, dimensions: int) -> None:
    train, which = blobs(n, dimensions, 0)
    other, other_which = blobs(50, dimensions, 1)
    of_train, of_other = cells(train, train, other)
    assert adjusted_rand_score(of_train, which) == 1
    assert adjusted_rand_score(torch.cat([of_train, of_other]), torch.cat([which, other_which])) == 1
    assert torch.equal(cells(train, other)[0], of_other)


@pytest.mark.parametrize("n", [30, 80, 300])
def test_cells_are_made_of_64_principal_components(n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    train, other = (torch.randn(m, 150, generator=generator).double() * torch.linspace(3, 1, 150) for m in (n, 40))
    centred = train - train.mean(0)
    axes = _axes(centred)
    pca = PCA(min(64, n - 1), svd_solver="full").fit(train)
    assert (axes.T @ axes).numpy() == pytest.approx(np.eye(pca.n_components_), abs=1e-9)
    # Axes have no sign, but distances along them have none either.
    expected, projected = pca.transform(other.numpy()), ((other - train.mean(0)) @ axes).numpy()
    assert pdist(projected) == pytest.approx(pdist(expected))


def test_equal_training_images_are_one_cell() -> None:
    same = torch.ones(10, 5)
    assert cells(same, torch.rand(4, 5))[0].tolist() == [0, 0, 0, 0]
    two = torch.cat([same, same + 1])
    assert sorted(cells(two, two)[0].unique().tolist()) == [0, 1]


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 59), seed=st.integers(0, 99))
def test_neither_order_nor_pieces_matter(cut: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, 60, generator=generator)
    a_cells, b_cells = torch.arange(60) % 2, torch.arange(60) % 3 % 2
    expected = data_copying(a, b, a_cells, b_cells)
    order = torch.randperm(60, generator=generator)
    again = data_copying(a[order], b, a_cells[order], b_cells)
    assert [again.value, again.low, again.high] == pytest.approx([expected.value, expected.low, expected.high])
    metric = DataCopying()
    for part in (order[:cut], order[cut:]):
        metric.update(a[part], a_cells[part], heldout=False)
        metric.update(b[part], b_cells[part], heldout=True)
    assert float(metric.compute()) == pytest.approx(expected.value, rel=1e-5)


def reference(train: Tensor, judge: Tensor) -> Reference:
    found = nearest_neighbors(judge, train)
    return Reference(
        train,
        len(judge),
        torch.arange(len(train)),
        {"f": train},
        {},
        {"f": judge},
        {"f": found},
        {},
        {"data_copying": 0},
    )


def sample(generated: Tensor, known: Reference) -> Sample:
    found = nearest_neighbors(generated, known.train["f"])
    return Sample(known, generated, {"f": generated}, {"f": found}, Evidence())


def test_copies_heldout_images_and_noise() -> None:
    train, judge, other = (blobs(150, 8, seed)[0] for seed in (0, 1, 2))
    known, metric = reference(train, judge), DataCopying("f", "f")

    def value(generated: Tensor) -> float:
        measured = metric.measure(sample(generated, known)).value
        assert measured is not None
        return measured

    assert value(train + 0.01 * other) < -3
    assert abs(value(other)) < 3
    assert value(other + 100) > 3
    null = metric.null(known)
    assert null is not None
    assert abs(null) < 3


def test_the_null_is_of_one_draw_of_features_and_distances() -> None:
    train, judge = blobs(60, 8, 0)[0], blobs(120, 8, 1)[0]
    known = reference(train, judge)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    first, second = judge[order[:60]], judge[order[60:]]
    expected = DataCopying("f", "f").measure(sample(first, reference(train, second))).value
    assert DataCopying("f", "f").null(known) == pytest.approx(expected)


def test_too_few_images_are_named() -> None:
    train, judge = torch.rand(1, 3), torch.rand(30, 3)
    metric, known = DataCopying("f", "f"), reference(train, judge)
    measured = metric.measure(sample(torch.rand(19, 3), known))
    assert metric.null(known) is None
    assert measured.value is None
    assert measured.note == "needs 20 generated and 2 held-out images in one cell, got [(19, 30)]"
    assert metric.null(reference(train, judge[:1])) is None
    assert metric.measure(sample(torch.rand(20, 3), reference(train, judge[:1]))).value is None


def test_no_cells_are_refused() -> None:
    with pytest.raises(InputError, match="cells=0"):
        DataCopying(cells=0)


def test_further_than_heldout_images_is_less_copied() -> None:
    assert DataCopying.higher_is_better is True
