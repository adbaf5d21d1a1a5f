from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from rewards.quality.fid import FID, fid


def features(n: int, d: int = 6, seed: int = 0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) @ torch.randn(d, d, generator=generator) + shift


class Precomputed(nn.Module):
    num_features = 6

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_equals_torchmetrics_and_the_matrix_square_root() -> None:
    generated, real = features(50, seed=1, shift=0.3), features(80)
    reference = FrechetInceptionDistance(feature=Precomputed())
    reference.set_dtype(torch.float64)
    reference.update(real.double(), real=True)
    reference.update(generated.double(), real=False)
    estimate = fid(generated, real)
    assert estimate.value == pytest.approx(float(reference.compute()), rel=1e-6)
    x, y = generated.double().numpy(), real.double().numpy()
    a, b = np.cov(x.T), np.cov(y.T)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    assert estimate.value == pytest.approx(expected, rel=1e-8)
    assert estimate[1:] == (None, None, 50)


def test_of_a_set_to_itself_is_zero_and_of_a_shift_its_square() -> None:
    real = features(100)
    assert fid(real, real).value == pytest.approx(0, abs=1e-9)
    assert fid(real + 2, real).value == pytest.approx(6 * 4, rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(6, 50), (50, 6)])
def test_as_few_images_as_dimensions_are_refused(n: int, m: int) -> None:
    with pytest.raises(ValueError, match="more than 6 images"):
        fid(features(n), features(m))


def test_neither_order_nor_pieces_matter() -> None:
    generated, real = features(20, seed=1), features(20)
    metric = FID("pixels")
    metric.update(real.flip(0), real=True)
    metric.update(generated[7:], real=False)
    metric.update(generated[:7], real=False)
    assert float(metric.compute()) == pytest.approx(fid(generated, real).value, rel=1e-5)


def test_less_is_better() -> None:
    assert FID.higher_is_better is False
    assert FID.plot_lower_bound == 0
