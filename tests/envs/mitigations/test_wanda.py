from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from envs.mitigations.wanda import Power, PowerMeter, located, rows_of, subspace
from envs.seeding import torch_generator

LAYERS = [
    (nn.Linear(6, 4), (3, 6)),
    (nn.Linear(6, 4), (3, 5, 6)),
    (nn.Conv2d(6, 4, 1), (3, 6, 5, 5)),
    (nn.Conv2d(6, 4, 3, padding=1), (3, 6, 5, 5)),
    (nn.Conv2d(6, 4, 3, padding=2, stride=2, dilation=2), (3, 6, 7, 5)),
    (nn.Conv2d(6, 4, 3, groups=2), (3, 6, 5, 5)),
]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch_generator(seed, "numbers"))


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_rows_are_what_the_rows_of_the_weight_are_multiplied_with(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = numbers(*shape)
    rows, weight = rows_of(layer, x), layer.get_parameter("weight")
    by_group = weight.flatten(1).view(rows.shape[1], -1, rows.shape[2])
    product = torch.einsum("god,ngdp->ngop", by_group, rows).flatten(1, 2) + layer.get_parameter("bias")[:, None]
    output = layer(x)
    expected = output.flatten(2) if isinstance(layer, nn.Conv2d) else output.flatten(1, -2).mT if x.ndim > 2 else None
    torch.testing.assert_close(product, output[:, :, None] if expected is None else expected)


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_power_is_the_mean_square_over_rows_of_norm_one(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x, meter = numbers(*shape), PowerMeter({"it": layer})
    with meter.reading():
        layer(x[:1])
        layer(x[1:])
    layer(100 * x)  # nothing is read any more
    power = meter.power()["it"]
    rows = [rows_of(layer, x)[i, :, :, p] for i in range(3) for p in range(rows_of(layer, x).shape[3])]
    torch.testing.assert_close(power, torch.stack([F.normalize(row, dim=1).square() for row in rows]).mean(0))
    torch.testing.assert_close(power.sum(dim=1), torch.ones(len(power)))


def test_by_hand() -> None:
    weight = torch.tensor([[1.0, -3.0, 2.0, 0.5], [4.0, 1.0, 1.0, 1.2]])
    memorized, base = torch.tensor([[0.25, 0.04, 0.25, 0.25]]), torch.tensor([[0.16, 0.01, 0.36, 0.16]])
    # Scores 0.5, 0.6, 1, 0.25 against 0.4, 0.3, 1.2, 0.2, and 2, 0.2, 0.5, 0.6 against 1.6, 0.1, 0.6, 0.48.
    assert located(weight, memorized, base, 0.5).int().tolist() == [[0, 1, 0, 0], [1, 0, 0, 1]]
    assert located(weight, memorized, base, 0.25).int().tolist() == [[0, 0, 0, 0], [1, 0, 0, 0]]
    assert located(weight, memorized, base, 1.0).int().tolist() == [[1, 1, 0, 1], [1, 1, 0, 1]]


powers = st.integers(0, 10**6).map(lambda seed: numbers(2, 6, seed=seed).square())


@given(st.lists(st.tuples(powers, powers), min_size=1, max_size=5), st.floats(0, 1), st.integers(0, 99))
def test_the_mask_is_sparse_and_grows_with_timesteps(
    found: list[tuple[Tensor, Tensor]], ratio: float, seed: int
) -> None:
    weight = numbers(8, 6, seed=seed)
    memorized: list[Power] = [{"it": one} for one, _ in found]
    base: list[Power] = [{"it": other} for _, other in found]
    before = torch.zeros(8, 6, dtype=torch.bool)
    for steps in range(1, len(found) + 1):
        mask = subspace({"it": weight}, memorized[:steps], base[:steps], ratio)["it"]
        assert (mask.float().mean(dim=1) <= ratio * steps + 1e-6).all()
        assert (mask | ~before).all(), "monotone"
        before = mask
    scores = [tuple(weight.abs() * power.sqrt().repeat_interleave(4, dim=0) for power in pair) for pair in found]
    higher = torch.stack([one > other for one, other in scores]).any(dim=0)
    assert (higher | ~before).all()


@given(powers, st.floats(0, 1))
def test_equal_sets_give_an_empty_mask(power: Tensor, ratio: float) -> None:
    assert not located(numbers(8, 6), power, power, ratio).any()


@given(powers, powers)
def test_a_ratio_of_nothing_gives_an_empty_mask(one: Tensor, other: Tensor) -> None:
    assert not located(numbers(8, 6), one, other, 0.0).any()
