from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from rewards.errors import InputError
from rewards.evidence import DenoisingLosses
from rewards.memorization.membership import Membership, MembershipTPR, membership_auc, membership_tpr

changes = st.lists(st.integers(-4, 4), min_size=2, max_size=30)
"""Whole numbers, so that ties abound."""


@settings(max_examples=60, deadline=None)
@given(train=changes, heldout=changes)
def test_auc_is_scikit_learns_with_ties(train: list[int], heldout: list[int]) -> None:
    members = np.repeat([1, 0], [len(train), len(heldout)])
    expected = roc_auc_score(members, -np.array(train + heldout))
    estimate = membership_auc(torch.tensor(train), torch.tensor(heldout))
    assert estimate.value == pytest.approx(expected)
    assert estimate.n == len(members)


@settings(max_examples=30, deadline=None)
@given(train=changes, heldout=changes)
def test_interval_is_delongs(train: list[int], heldout: list[int]) -> None:
    wins = np.array([[(t < h) + 0.5 * (t == h) for h in heldout] for t in train])
    variance = wins.mean(1).var(ddof=1) / len(train) + wins.mean(0).var(ddof=1) / len(heldout)
    estimate = membership_auc(torch.tensor(train), torch.tensor(heldout))
    assert estimate.low == pytest.approx(max(wins.mean() - 1.959964 * variance**0.5, 0), abs=1e-6)
    assert estimate.high == pytest.approx(min(wins.mean() + 1.959964 * variance**0.5, 1), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(train=changes, heldout=changes, rate=st.sampled_from([0.05, 0.2, 0.5]))
def test_tpr_is_that_of_the_roc_curve(train: list[int], heldout: list[int], rate: float) -> None:
    members = np.repeat([1, 0], [len(train), len(heldout)])
    false_positives, true_positives, _thresholds = roc_curve(
        members, -np.array(train + heldout, dtype=float), drop_intermediate=False
    )
    allowed = max(1, int(rate * (len(heldout) + 1) + 1e-9)) - 1
    best = true_positives[np.round(false_positives * len(heldout)) <= allowed].max()
    assert membership_tpr(torch.tensor(train), torch.tensor(heldout), rate).value == pytest.approx(best)


def test_an_untouched_model_gives_nothing_away() -> None:
    assert membership_auc(torch.zeros(9), torch.zeros(7)) == (0.5, 0.5, 0.5, 16)
    assert membership_tpr(torch.zeros(9), torch.zeros(7)).value == 0


def test_lower_loss_on_training_images_is_membership() -> None:
    train, heldout = torch.linspace(-2, -1, 20), torch.linspace(-0.5, 0.5, 30)
    assert membership_auc(train, heldout).value == 1
    assert membership_auc(heldout, train).value == 0
    assert membership_tpr(train, heldout).value == 1
    assert membership_tpr(heldout, train).value == 0


def test_a_few_sure_members_show_in_the_rate_and_not_in_the_area() -> None:
    rng = np.random.default_rng(0)
    train, heldout = torch.from_numpy(rng.standard_normal(100)), torch.from_numpy(rng.standard_normal(200))
    train[:10] = -10
    assert membership_auc(train, heldout).value < 0.6
    assert membership_tpr(train, heldout).value >= 0.1


@settings(max_examples=20, deadline=None)
@given(train=changes, heldout=changes, cut=st.integers(1, 1))
def test_pieces_do_not_matter(train: list[int], heldout: list[int], cut: int) -> None:
    for metric, function in ((Membership(), membership_auc), (MembershipTPR(), membership_tpr)):
        for values, is_heldout in ((train, False), (heldout, True)):
            metric.update(torch.tensor(values[:cut]), heldout=is_heldout)
            metric.update(torch.tensor(values[cut:]), heldout=is_heldout)
        assert float(metric.compute()) == pytest.approx(function(torch.tensor(train), torch.tensor(heldout)).value)


def test_changes_are_fine_tuned_minus_base() -> None:
    losses = DenoisingLosses(
        torch.tensor([1.0, 2.0]), torch.tensor([3.0]), torch.tensor([4.0, 2.5]), torch.tensor([1.0])
    )
    assert losses.train_change.tolist() == [-3.0, -0.5]
    assert losses.heldout_change.tolist() == [2.0]


@pytest.mark.parametrize(
    ("train", "base_train", "message"),
    [
        (torch.zeros(2), torch.zeros(3), "same images"),
        (torch.zeros(0), torch.zeros(0), "one loss an image"),
        (torch.zeros(2, 1), torch.zeros(2, 1), "one loss an image"),
        (torch.tensor([0.0, torch.nan]), torch.zeros(2), "finite"),
    ],
)
def test_losses_that_do_not_belong_together_are_refused(
    train: torch.Tensor, base_train: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        DenoisingLosses(train, torch.zeros(2), base_train, torch.zeros(2))


def test_more_membership_is_worse() -> None:
    assert Membership.higher_is_better is False
    assert MembershipTPR.higher_is_better is False
    with pytest.raises(InputError, match="rate"):
        MembershipTPR(rate=0)
