from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rewards.neighbors import Backend, nearest_neighbors


def brute_force(
    queries: Tensor, galleries: list[Tensor], k: int, exclude_self: bool, labels: Any = None
) -> tuple[Any, Any]:
    q = queries.numpy().astype(np.float64)
    each = [((q[:, None] - g.numpy().astype(np.float64)[None]) ** 2).mean(-1) ** 0.5 for g in galleries]
    distances = np.minimum.reduce(each)
    labels = np.arange(distances.shape[1]) if labels is None else np.asarray(labels)
    if exclude_self:
        distances[labels[:, None] == labels[None]] = np.inf
    found = []
    for row in distances:
        nearest: dict[Any, int] = {}
        for column in np.argsort(row, kind="stable"):
            nearest.setdefault(labels[column], column)
        found.append(list(nearest.values())[:k])
    indices = np.array(found).reshape(len(q), k)
    return np.take_along_axis(distances, indices, axis=1), indices


@settings(max_examples=200, deadline=None)
@given(
    data=st.data(),
    flipped=st.booleans(),
    exclude_self=st.booleans(),
    labelled=st.booleans(),
    max_bytes=st.sampled_from([1, 5000, 40_000, 1 << 28]),
    backend=st.sampled_from(["torch", "faiss"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_brute_force_with_ties(
    data: st.DataObject,
    flipped: bool,
    exclude_self: bool,
    labelled: bool,
    max_bytes: int,
    backend: Backend,
    dtype: torch.dtype,
) -> None:
    m, d = data.draw(st.integers(2, 9) | st.integers(40, 60)), data.draw(st.integers(1, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    labels = 7 * torch.from_numpy(rng.integers(0, m, m)) - 9 if labelled else None
    kinds = m if labels is None else len(labels.unique())
    assume(kinds > exclude_self)
    n = m if exclude_self else data.draw(st.integers(1, 9))
    k = data.draw(st.integers(1, min(kinds - exclude_self, 12)))
    gallery, mirrored = (torch.from_numpy(rng.integers(0, 3, (m, d))).to(dtype) for _ in range(2))
    queries = gallery if exclude_self else torch.from_numpy(rng.integers(0, 3, (n, d))).to(dtype)
    found = nearest_neighbors(
        queries,
        gallery,
        flipped_gallery=mirrored if flipped else None,
        k=k,
        exclude_self=exclude_self,
        labels=labels,
        max_bytes=max_bytes,
        backend=backend,
    )
    galleries = [gallery, mirrored] if flipped else [gallery]
    distances, indices = brute_force(queries, galleries, k, exclude_self, labels)
    np.testing.assert_array_equal(found.indices.numpy(), indices)
    np.testing.assert_allclose(found.distances.numpy(), distances, rtol=1e-14)


def near_ties(dtype: torch.dtype, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Queries and members around few centres, each centre's nearer to each other than products tell."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, 64, generator=generator, dtype=torch.float64) + 3

    def around(n: int) -> Tensor:
        chosen = centres[torch.randint(0, 5, (n,), generator=generator)]
        return (chosen + spread * torch.randn(n, 64, generator=generator, dtype=torch.float64)).to(dtype)

    return around(40), around(300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0, 1e-6, 1e-4, 1e-2])
@pytest.mark.parametrize("k", [1, 4])
def test_both_backends_agree_to_the_last_bit_on_near_ties(dtype: torch.dtype, spread: float, k: int) -> None:
    queries, gallery = near_ties(dtype, spread)
    labels = torch.arange(300) // 2
    for options in ({}, {"labels": labels}, {"labels": labels, "flipped_gallery": gallery.flip(1)}):
        ours = nearest_neighbors(queries, gallery, k=k, backend="torch", **options)  # type: ignore[arg-type]
        theirs = nearest_neighbors(queries, gallery, k=k, backend="faiss", max_bytes=300_000, **options)  # type: ignore[arg-type]
        assert torch.equal(ours.distances, theirs.distances)
        assert torch.equal(ours.indices, theirs.indices)
    distances, indices = brute_force(queries, [gallery], k, False)
    found = nearest_neighbors(queries, gallery, k=k)
    np.testing.assert_array_equal(found.indices.numpy(), indices)
    np.testing.assert_allclose(found.distances.numpy(), distances, rtol=1e-12)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_coarser_products_that_a_program_allows_change_nothing(precision: str) -> None:
    queries, gallery = near_ties(torch.float32, 1e-2)
    expected = nearest_neighbors(queries, gallery, k=4)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        found = nearest_neighbors(queries, gallery, k=4)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found.distances, expected.distances)
    assert torch.equal(found.indices, expected.indices)


@pytest.mark.parametrize("size", [1e-40, 1e-30, 1e30])
@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_squares_outside_of_single_precisions_range_are_compared_too(size: float, backend: Backend) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, gallery = (size * torch.randn(n, 8, generator=generator) for n in (10, 60))
    found = nearest_neighbors(queries, gallery, k=3, backend=backend)
    distances, indices = brute_force(queries, [gallery], 3, False)
    np.testing.assert_array_equal(found.indices.numpy(), indices)
    np.testing.assert_allclose(found.distances.numpy(), distances, rtol=1e-12)


def test_copies_of_one_label_are_one_neighbour() -> None:
    gallery = torch.tensor([[0.0], [1.0], [1.1], [1.2], [3.0]])
    labels = torch.tensor([4, 9, 9, 9, 4])
    found = nearest_neighbors(torch.tensor([[1.15]]), gallery, k=2, labels=labels)
    assert found.indices.tolist() == [[2, 0]]
    among_others = nearest_neighbors(gallery, gallery, labels=labels, exclude_self=True)
    assert among_others.indices[:, 0].tolist() == [1, 0, 0, 0, 3]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_a_gpu_the_result_is_the_same(dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    labels = torch.arange(300) // 2
    for spread in (0, 1e-6, 1e-2, 1):
        queries, gallery = near_ties(dtype, spread)
        here = nearest_neighbors(queries, gallery, k=4, labels=labels)
        there = nearest_neighbors(queries.cuda(), gallery.cuda(), k=4, labels=labels)
        assert there.distances.is_cuda
        assert torch.equal(there.indices.cpu(), here.indices)
        torch.testing.assert_close(there.distances.cpu(), here.distances, rtol=1e-13, atol=0)


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


@pytest.mark.parametrize(("k", "backend"), [(1, "torch"), (5, "torch"), (5, "faiss")])
@pytest.mark.parametrize("options", ["plain", "flipped", "labels"])
def test_memory_is_bounded_by_the_setting(k: int, backend: Backend, options: str) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(120, 100, generator=generator), torch.randn(2000, 100, generator=generator)
    gallery[:40] = gallery[0]
    queries[:20] = gallery[0]
    given: dict[str, Any] = {
        "plain": {},
        "flipped": {"flipped_gallery": gallery.flip(1)},
        "labels": {"labels": torch.arange(2000) // 3},
    }[options]
    with PeakMemory(queries, gallery, *given.values()) as free:
        whole = nearest_neighbors(queries, gallery, k=k, backend=backend, **given)
    with PeakMemory(queries, gallery, *given.values()) as bounded:
        parts = nearest_neighbors(queries, gallery, k=k, backend=backend, max_bytes=500_000, **given)
    assert bounded.peak <= 500_000 < free.peak / 5
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
        (torch.zeros(2, 3).double(), torch.full((2, 3), 1e200, dtype=torch.float64), {}, "overflow"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"labels": torch.zeros(3, dtype=torch.int64)}, "labels are int64"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"labels": torch.zeros(2)}, "labels are int64"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"labels": torch.zeros(2, dtype=torch.int64), "k": 2}, "among 1 labels"),
        (
            torch.zeros(2, 3),
            torch.zeros(2, 3),
            {"labels": torch.zeros(2, dtype=torch.int64), "exclude_self": True},
            "k=1 neighbours among 1 labels",
        ),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"backend": "numpy"}, "choose among auto, torch, faiss"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    queries: Tensor, gallery: Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_neighbors(queries, gallery, **options)
