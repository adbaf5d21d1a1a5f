from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rewards.errors import InputError
from rewards.memorization.copy_rate import CopyRate, copies, copy_rate, copy_threshold


def distances(n: int, rng: np.random.Generator) -> Tensor:
    """Of two embeddings that agree in part, on scales of their own."""
    common = rng.standard_normal((n, 1))
    return torch.from_numpy(np.exp(0.3 * (common + rng.standard_normal((n, 2)))) * [1.0, 20.0])


@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_new_heldout_images_are_flagged_at_the_stated_rate(rate: float) -> None:
    rng = np.random.default_rng(0)
    stated = copy_threshold(distances(120, rng), rate).rate
    assert stated <= rate
    flagged = [copies(distances(200, rng), distances(120, rng), rate).double().mean() for _ in range(200)]
    assert float(torch.stack(flagged).mean()) == pytest.approx(stated, rel=0.25)


def test_extremes() -> None:
    rng = np.random.default_rng(0)
    null = distances(150, rng)
    assert copy_rate(torch.zeros(40, 2), null).value == 1
    assert copy_rate(null * 0 + 1e6, null).value == 0
    assert copy_rate(distances(300, rng), null).value < 0.05


@pytest.mark.parametrize("embedding", [0, 1])
def test_a_copy_that_one_embedding_alone_sees_is_found(embedding: int) -> None:
    null = distances(150, np.random.default_rng(0))
    image = null.quantile(0.5, dim=0)
    image[embedding] = 0.3 * null[:, embedding].min()
    assert copies(image[None], null).tolist() == [True]


def test_one_embedding_alone_flags_what_is_below_all_heldout_images() -> None:
    null = torch.linspace(1, 2, 150)[:, None]
    assert copies(torch.tensor([[0.0], [0.9], [1.1], [1.5]]), null).tolist() == [True, True, False, False]


def test_units_of_an_embedding_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    found, null = distances(300, rng) * 0.6, distances(150, rng)
    scale = torch.tensor([1000.0, 0.25])
    expected = copies(found, null, 0.05)
    assert 0 < int(expected.sum()) < 300
    assert torch.equal(copies(found * scale, null * scale, 0.05), expected)


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 29), seed=st.integers(0, 99))
def test_neither_order_nor_pieces_matter(cut: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    found, null = distances(30, rng) * 0.5, distances(40, rng)
    metric = CopyRate(["pixels", "pixels"], rate=0.1)
    shuffled, mixed = found[rng.permutation(30)], null[rng.permutation(40)]
    metric.update(mixed[:cut], heldout=True)
    metric.update(shuffled[:cut], heldout=False)
    metric.update(mixed[cut:], heldout=True)
    metric.update(shuffled[cut:], heldout=False)
    assert float(metric.compute()) == pytest.approx(copy_rate(found, null, 0.1).value)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match="rate"):
        CopyRate(["pixels"], rate=rate)


def test_more_copies_are_worse() -> None:
    assert CopyRate.higher_is_better is False
    assert (CopyRate.plot_lower_bound, CopyRate.plot_upper_bound) == (0, 1)
