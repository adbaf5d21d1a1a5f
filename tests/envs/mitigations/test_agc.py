from __future__ import annotations

import pytest
import torch
from torch import Tensor

from envs.hooks import Batch
from envs.mitigations import find_mitigations
from envs.mitigations.agc import LossBank
from rewards.errors import InputError
from tests.envs.mitigations.conftest import Ward, same

T = 10


def batch_at(*t: int) -> Batch:
    n = len(t)
    nothing = torch.zeros(n, 1, 1, 1)
    return Batch(nothing, torch.zeros(n, 1, 1), nothing, torch.tensor(t), torch.arange(n))


def losses(*values: float) -> Tensor:
    return torch.tensor(values, requires_grad=True)


def test_the_bank_starts_at_zero_and_leaves_out_nothing_on_a_first_visit() -> None:
    bank = LossBank(T, 2.0, 0.8)
    assert bank.means.tolist() == [0.0] * T
    assert bank.kept(losses(*[1e-6] * T), batch_at(*range(T))).all()


def test_it_leaves_out_what_is_below_the_share_of_the_mean_and_remembers_it_all_the_same() -> None:
    bank = LossBank(T, 2.0, 0.8)
    bank.means[3] = bank.means[5] = 1.0
    assert bank.kept(losses(0.1, 0.6, 0.1), batch_at(3, 5, 7)).tolist() == [False, True, True]
    expected = [0.8 + 0.2 * 0.1, 0.8 + 0.2 * 0.6, 0.2 * 0.1]
    torch.testing.assert_close(bank.means[[3, 5, 7]], torch.tensor(expected, dtype=torch.float64))
    assert bank.figures() == {"agc.skipped_share": pytest.approx(1 / 3)}


def test_a_timestep_that_occurs_twice_moves_the_bank_twice_in_batch_order() -> None:
    bank = LossBank(T, 2.0, 0.5)
    kept = bank.kept(losses(4.0, 1.0), batch_at(2, 2))
    assert kept.all(), "both are compared with what was there before the batch"
    assert bank.means[2] == 0.5 * (0.5 * 0 + 0.5 * 4) + 0.5 * 1


def test_timesteps_of_a_region_share_a_mean() -> None:
    bank = LossBank(T, 2.0, 0.5, regions=2)
    assert bank.kept(losses(8.0, 1.0), batch_at(4, 5)).all()
    assert bank.means.tolist() == [4.0, 0.5]
    assert bank.kept(losses(1.0, 1.0), batch_at(0, 9)).tolist() == [False, True]
    assert len(LossBank(T, 2.0, 0.5, regions=50).means) == T, "never more than there are timesteps"


def test_a_short_fine_tune_meets_a_region_often_enough_to_leave_something_out(ward: Ward) -> None:
    def skipped(regions: int | None) -> float:
        return ward.treat({"agc": {"regions": regions}}).figures["agc.skipped_share"]

    assert skipped(None) == 0.0
    assert skipped(2) > 0.0


def test_a_batch_that_is_left_out_whole_changes_nothing(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    base = ward.weights()

    def nothing(self: LossBank, losses: Tensor, batch: Batch) -> Tensor:
        return torch.zeros(len(losses), dtype=torch.bool)

    monkeypatch.setattr(LossBank, "kept", nothing)
    trained = ward.treat({"agc": {}})
    assert trained.steps == 0
    assert same(ward.weights(), base)


def test_what_is_left_out_after_the_forward_pass_is_as_if_it_had_never_been_in_it(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is the mean over what is kept: four samples of which two are kept make the step of those two."""

    def first_two(self: LossBank, losses: Tensor, batch: Batch) -> Tensor:
        return torch.arange(len(losses)) < 2

    monkeypatch.setattr(LossBank, "kept", first_two)
    kept = ward.after({"agc": {}})
    monkeypatch.setattr(LossBank, "kept", lambda self, losses, batch: None)
    monkeypatch.setattr(LossBank, "admitted", lambda self, batch: torch.arange(len(batch.t)) < 2)
    admitted = ward.after({"agc": {}})
    plain = ward.after({})
    assert max((kept[name] - admitted[name]).abs().max().item() for name in plain) < 1e-4
    assert max((kept[name] - plain[name]).abs().max().item() for name in plain) > 1e-3


def test_keeping_everything_is_plain_training_but_for_rounding(ward: Ward) -> None:
    """On a first visit of every timestep; 1000 timesteps are hardly met twice in 8 steps."""
    treated, plain = ward.after({"agc": {"regions": None}}), ward.after({})
    assert max((treated[name] - plain[name]).abs().max().item() for name in plain) < 1e-4


@pytest.mark.parametrize(
    "settings",
    [{"mem_ratio": 0.5}, {"mem_ratio": "2"}, {"decay": 1.0}, {"decay": -0.1}, {"regions": 0}, {"regions": True}],
)
def test_settings_out_of_range(settings: dict[str, object]) -> None:
    (name,) = settings
    with pytest.raises(InputError, match=rf"mitigation\.agc\.{name}="):
        find_mitigations({"agc": settings})
