from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from rewards.alignment import aligned_neighbors


def textures(n: int, seed: int, height: int = 32, width: int = 32) -> Tensor:
    """Smooth coloured patterns, unlike one another."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (n, 3, 6, 6), generator=generator).float()
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").round().to(torch.uint8)


def moved(images: Tensor, down: int, right: int) -> Tensor:
    padded = torch.nn.functional.pad(images.float(), (4, 4, 4, 4), mode="replicate")
    height, width = images.shape[-2:]
    return padded[..., 4 - down : 4 - down + height, 4 - right : 4 - right + width].to(torch.uint8)


def brute_force(query: Tensor, candidate: Tensor) -> float:
    """Every shift and both orientations, one after the other, on images blurred by SciPy."""

    def blurred(image: Tensor) -> np.ndarray:
        values = image.numpy().astype(np.float64) / 255
        for axis in (1, 2):
            sigma = values.shape[axis] / 64
            radius = int(np.ceil(3 * sigma))
            values = gaussian_filter1d(values, sigma, axis=axis, mode="nearest", radius=radius)
        return values

    height, width = query.shape[1:]
    up, left = (min(max(1, round(length / 16)), (length - 1) // 2) for length in (height, width))
    middle = blurred(query)[:, up : height - up, left : width - left]
    found = []
    for seen in (blurred(candidate), blurred(candidate.flip(-1))):
        for y in range(2 * up + 1):
            for x in range(2 * left + 1):
                difference = middle - seen[:, y : y + middle.shape[1], x : x + middle.shape[2]]
                found.append(float(difference.std()))
    return min(found)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), height=st.integers(2, 40), width=st.integers(2, 40))
def test_equals_every_shift_tried_in_turn(seed: int, height: int, width: int) -> None:
    train, queries = textures(5, seed, height, width), textures(3, seed + 1000, height, width)
    candidates = torch.tensor([[0, 1, 2], [2, 2, 4], [3, 1, 0]])
    found = aligned_neighbors(queries, train, candidates)
    for i in range(3):
        each = {int(j): brute_force(queries[i], train[j]) for j in candidates[i]}
        assert float(found.distances[i, 0]) == pytest.approx(min(each.values()), abs=2e-4)
        assert each[int(found.indices[i, 0])] == pytest.approx(min(each.values()), abs=2e-4)


def test_a_copy_is_at_exactly_zero_flipped_or_not() -> None:
    train = textures(6, 0)
    candidates = torch.arange(6).repeat(6, 1)
    for queries in (train, train.flip(-1)):
        found = aligned_neighbors(queries, train, candidates)
        assert found.distances[:, 0].tolist() == [0.0] * 6
        assert found.indices[:, 0].tolist() == list(range(6))


@pytest.mark.parametrize(("down", "right"), [(2, 0), (0, -2), (2, 2), (-1, 2)])
def test_a_shifted_brighter_copy_is_near_and_another_image_is_not(down: int, right: int) -> None:
    train = textures(6, 0)
    copies = (moved(train, down, right).int() + 10).clamp(0, 255).to(torch.uint8)
    found = aligned_neighbors(copies, train, torch.arange(6).repeat(6, 1))
    others = aligned_neighbors(textures(6, 9), train, torch.arange(6).repeat(6, 1))
    assert found.indices[:, 0].tolist() == list(range(6))
    assert float(found.distances.max()) < 0.25 * float(others.distances.min())


def test_a_query_does_not_depend_on_the_others() -> None:
    train, queries = textures(20, 0), textures(300, 1)
    candidates = torch.randint(0, 20, (300, 12), generator=torch.Generator().manual_seed(0))
    together = aligned_neighbors(queries, train, candidates)
    alone = aligned_neighbors(queries[250:251], train, candidates[250:251])
    torch.testing.assert_close(alone.distances, together.distances[250:251], rtol=1e-12, atol=0)
    assert torch.equal(alone.indices, together.indices[250:251])


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"32, 32.*16, 16"):
        aligned_neighbors(textures(2, 0), textures(2, 0, 16, 16), torch.zeros(2, 1, dtype=torch.long))


def test_values_that_are_no_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        aligned_neighbors(textures(2, 0).float(), textures(2, 0), torch.zeros(2, 1, dtype=torch.long))
