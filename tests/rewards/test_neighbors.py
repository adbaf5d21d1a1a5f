from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rewards.neighbors import nearest_neighbors


def brute_force(queries: Tensor, galleries: list[Tensor], k: int, exclude_self: bool) -> tuple[Any, Any]:
    q = queries.numpy().astype(np.float64)
    each = [((q[:, None] - g.numpy().astype(np.float64)[None]) ** 2).mean(-1) ** 0.5 for g in galleries]
    distances = np.minimum.reduce(each)
    if exclude_self:
        np.fill_diagonal(distances, np.inf)
    indices = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, indices, axis=1), indices


@settings(max_examples=60, deadline=None)
@given(data=st.data(), flipped=st.booleans(), exclude_self=st.booleans(), max_bytes=st.sampled_from([1, 5000, 1 << 28]))
def test_equals_brute_force_with_ties(data: st.DataObject, flipped: bool, exclude_self: bool, max_bytes: int) -> None:
    m, d = data.draw(st.integers(2, 9)), data.draw(st.integers(1, 3))
    n = m if exclude_self else data.draw(st.integers(1, 9))
    k = data.draw(st.integers(1, m - exclude_self))
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    gallery, mirrored = (torch.from_numpy(rng.integers(0, 3, (m, d))).float() for _ in range(2))
    queries = gallery if exclude_self else torch.from_numpy(rng.integers(0, 3, (n, d))).float()
    found = nearest_neighbors(
        queries,
        gallery,
        flipped_gallery=mirrored if flipped else None,
        k=k,
        exclude_self=exclude_self,
        max_bytes=max_bytes,
    )
    distances, indices = brute_force(queries, [gallery, mirrored] if flipped else [gallery], k, exclude_self)
    np.testing.assert_array_equal(found.indices.numpy(), indices)
    np.testing.assert_allclose(found.distances.numpy(), distances, rtol=1e-14)


def test_copies_are_at_exactly_zero_and_near_copies_are_told_apart_far_from_the_origin() -> None:
    generator = torch.Generator().manual_seed(0)
    gallery = 1e4 + torch.randn(50, 1000, generator=generator)
    queries = gallery[:20].clone()
    queries[10:, 0] += 0.01
    found = nearest_neighbors(queries, gallery, k=2)
    assert found.indices[:, 0].tolist() == list(range(20))
    assert found.distances[:10, 0].tolist() == [0.0] * 10
    distances, _ = brute_force(queries, [gallery], 2, False)
    np.testing.assert_allclose(found.distances.numpy(), distances, rtol=1e-12)
    assert (found.distances[10:, 0] > 0).all()


def test_neighbours_nearer_to_each_other_than_the_products_rounding_are_ranked_by_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    centre = 1e4 * torch.randn(1000, generator=generator, dtype=torch.float64)
    gallery, queries = (
        centre + 1e-4 * torch.randn(n, 1000, generator=generator, dtype=torch.float64) for n in (30, 10)
    )
    found = nearest_neighbors(queries, gallery, k=5)
    distances, indices = brute_force(queries, [gallery], 5, False)
    np.testing.assert_array_equal(found.indices.numpy(), indices)
    np.testing.assert_allclose(found.distances.numpy(), distances, rtol=1e-12)


def test_the_mirror_image_of_a_member_is_that_member() -> None:
    images = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    features, flipped = images.flatten(1), images.flip(-1).flatten(1)
    found = nearest_neighbors(flipped, features, flipped_gallery=flipped)
    assert found.indices[:, 0].tolist() == list(range(8))
    assert found.distances.max() == 0
    assert nearest_neighbors(flipped, features).distances.min() > 0.1
    among_others = nearest_neighbors(features, features, flipped_gallery=flipped, exclude_self=True)
    assert (among_others.indices[:, 0] != torch.arange(8)).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), max_bytes=st.integers(1, 100_000))
def test_neither_order_nor_chunks_change_a_bit(seed: int, max_bytes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries, gallery = torch.randn(17, 33, generator=generator), torch.randn(12, 33, generator=generator)
    whole = nearest_neighbors(queries, gallery, k=3)
    order = torch.randperm(17, generator=generator)
    parts = nearest_neighbors(queries[order], gallery, k=3, max_bytes=max_bytes)
    assert torch.equal(parts.distances, whole.distances[order])
    assert torch.equal(parts.indices, whole.indices[order])


class PeakMemory(TorchDispatchMode):
    """The most bytes that results of operations held at one time, beside the given tensors."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._given = {t.untyped_storage().data_ptr() for t in given}
        self._live: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple | list) else (result,):
            if isinstance(t, Tensor):
                self._live[id(t)] = t
        storages = [t.untyped_storage() for t in self._live.values()]
        held = {s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in self._given}
        self.peak = max(self.peak, sum(held.values()))
        return result


def test_memory_is_bounded_by_the_setting() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(80, 200, generator=generator), torch.randn(400, 200, generator=generator)
    gallery[:30] = gallery[0]
    with PeakMemory(queries, gallery) as free:
        whole = nearest_neighbors(queries, gallery)
    with PeakMemory(queries, gallery) as bounded:
        parts = nearest_neighbors(queries, gallery, max_bytes=300_000)
    assert bounded.peak <= 300_000 < free.peak / 5
    assert torch.equal(whole.distances, parts.distances)
    assert torch.equal(whole.indices, parts.indices)


def test_no_query_gives_empty_results() -> None:
    found = nearest_neighbors(torch.empty(0, 3), torch.zeros(2, 3), k=2)
    assert found.distances.shape == found.indices.shape == (0, 2)


@pytest.mark.parametrize(
    ("queries", "gallery", "options", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), {}, "do not fit"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"flipped_gallery": torch.zeros(3, 3)}, "do not fit"),
        (torch.zeros(1, 3), torch.zeros(2, 3), {"exclude_self": True}, "do not fit"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"k": 3}, "k=3"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"k": 2, "exclude_self": True}, "k=2"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"k": 0}, "k=0"),
        (torch.full((2, 3), torch.nan), torch.zeros(2, 3), {}, "finite"),
        (torch.zeros(2, 3), torch.full((2, 3), torch.inf), {}, "finite"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    queries: Tensor, gallery: Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_neighbors(queries, gallery, **options)
