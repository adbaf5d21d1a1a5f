from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rewards.errors import InputError
from rewards.evidence import Evidence
from rewards.memorization.extraction import (
    Extraction,
    extracted,
    extraction,
    extraction_threshold,
    find_clique,
    nearest_tile_distances,
    tile_distances,
)
from rewards.reference import Reference
from rewards.sample import Sample

networkx = pytest.importorskip("networkx")  # torch brings it


def images(n: int, seed: int, size: int = 8) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def noisy(picture: Tensor, n: int, seed: int, sd: float = 0.01) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return picture + sd * torch.randn(n, *picture.shape[-3:], generator=generator)


def by_hand(a: Tensor, b: Tensor, tiles: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Tile by tile, pair by pair."""
    h, w = a.shape[-2] // tiles, a.shape[-1] // tiles
    worst = np.zeros((len(a), len(b)))
    for i, x in enumerate(a.numpy().astype(np.float64)):
        for j, y in enumerate(b.numpy().astype(np.float64)):
            each = [
                np.sqrt(np.mean((x - y)[:, r * h : (r + 1) * h, c * w : (c + 1) * w] ** 2))
                for r in range(tiles)
                for c in range(tiles)
            ]
            worst[i, j] = max(each)
    return worst


@pytest.mark.parametrize("tiles", [1, 2, 4])
def test_tile_distances_are_those_by_hand(tiles: int) -> None:
    a, b = images(5, 0), images(7, 1)
    b[0] = a[2]
    expected = by_hand(a, b, tiles)
    assert tile_distances(a, b, tiles).numpy() == pytest.approx(expected, abs=1e-6)
    both = np.minimum(expected, by_hand(a, b.flip(-1), tiles)).min(1)
    assert nearest_tile_distances(a, b, tiles).numpy() == pytest.approx(both, abs=1e-12)
    assert nearest_tile_distances(a, b, tiles)[2] == 0
    assert nearest_tile_distances(a.flip(-1), b, tiles)[2] == 0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), scale=st.sampled_from([1e-3, 1.0, 255.0]), near=st.booleans())
def test_single_precision_only_proposes(seed: int, scale: float, near: bool) -> None:
    train = images(9, seed, 4)
    if near:
        train = 0.7 + 1e-5 * train  # closer to each other than single precision's products can tell
    queries = train[:4] + 1e-5 * images(4, seed + 1, 4)
    train, queries = scale * train, scale * queries
    both = np.minimum(by_hand(queries, train, 2), by_hand(queries, train.flip(-1), 2)).min(1)
    assert nearest_tile_distances(queries, train, 2).numpy() == pytest.approx(both, rel=1e-9, abs=0)


def test_one_altered_corner_changes_one_tile() -> None:
    image = torch.full((1, 3, 64, 64), 0.5)
    altered = image.clone()
    altered[..., :3, :3] = 1
    tiles = [slice(0, 16), slice(16, 32), slice(32, 48), slice(48, 64)]
    changed = [float(tile_distances(image[..., r, c], altered[..., r, c], 1)) for r in tiles for c in tiles]
    assert [value > 0 for value in changed] == [True] + 15 * [False]
    assert float(tile_distances(image, altered)) == pytest.approx(changed[0])


def test_bytes_are_not_subtracted_as_bytes() -> None:
    dark, bright = (torch.full((1, 3, 8, 8), value, dtype=torch.uint8) for value in (10, 250))
    assert float(tile_distances(dark, bright)) == pytest.approx(240)
    assert float(nearest_tile_distances(dark, bright)) == pytest.approx(240)


def test_tiles_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"8 x 8 pixels are not cut into 3 x 3 tiles"):
        tile_distances(images(1, 0), images(1, 1), 3)


@st.composite
def graphs(draw: st.DrawFn) -> Tensor:
    n = draw(st.integers(1, 9))
    pairs = list(combinations(range(n), 2))
    linked = torch.zeros(n, n, dtype=torch.bool)
    for (i, j), there in zip(
        pairs, draw(st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs))), strict=True
    ):
        linked[i, j] = linked[j, i] = there
    return linked


@settings(max_examples=150, deadline=None)
@given(linked=graphs(), size=st.integers(1, 6))
def test_a_clique_is_found_exactly_where_networkx_knows_one(linked: Tensor, size: int) -> None:
    largest = max(len(clique) for clique in networkx.find_cliques(networkx.from_numpy_array(linked.numpy())))
    found = find_clique(linked, size)
    assert (found is not None) == (largest >= size)
    if found is not None:
        assert len(set(found)) == size
        assert all(bool(linked[i, j]) for i, j in combinations(found, 2))


@pytest.mark.parametrize("seed", range(3))
def test_larger_graphs_are_searched_to_the_end(seed: int) -> None:
    graph = networkx.gnp_random_graph(60, 0.5, seed=seed)
    linked = torch.from_numpy(networkx.to_numpy_array(graph)).bool()
    largest = max(len(clique) for clique in networkx.find_cliques(graph))
    assert find_clique(linked, largest) is not None
    assert find_clique(linked, largest + 1) is None


def test_neither_a_path_nor_a_ring_is_a_clique() -> None:
    path = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]]).bool()
    assert find_clique(path, 3) is None
    ring = torch.roll(torch.eye(8), 1, 0).bool()
    assert find_clique(ring | ring.T, 3) is None
    assert find_clique(ring | ring.T, 2) is not None


def test_many_nodes_without_a_clique_are_quickly_given_up() -> None:
    # 9 parties of 20: every node is linked with 160 others, and there are 20^9 cliques of 9, but none of 10.
    party = torch.arange(180) % 9
    linked = party[:, None] != party
    assert find_clique(linked, 10) is None
    assert find_clique(linked, 9) is not None


def test_the_search_is_bounded() -> None:
    graph = networkx.gnp_random_graph(60, 0.5, seed=0)
    linked = torch.from_numpy(networkx.to_numpy_array(graph)).bool()
    assert find_clique(linked, 6) is not None
    assert find_clique(linked, 6, steps=5) is None
    assert find_clique(linked, 6, steps=0) is None


TRAIN, HELDOUT = images(30, 0), images(40, 1)
LIMIT = extraction_threshold(HELDOUT, TRAIN, tiles=2).value


def share(prompts: list[str], generated: Tensor, clique: int = 4) -> float:
    return extraction(prompts, generated, TRAIN, LIMIT, clique=clique, tiles=2).value


def test_extremes() -> None:
    copies = torch.cat([noisy(TRAIN[i], 5, i) for i in range(3)])
    prompts = [name for name in "abc" for _ in range(5)]
    assert share(prompts, copies) == 1
    assert share(prompts, copies.flip(-1)) == 1
    assert share(prompts, images(15, 7)) == 0
    assert share(prompts, copies + 10) == 0
    estimate = extraction(prompts, copies, TRAIN, LIMIT, clique=4, tiles=2)
    assert estimate.n == 3
    assert estimate.high == 1
    assert estimate.low is not None
    assert 0 < estimate.low < 1


def test_an_image_generated_again_and_again_that_is_no_training_image_is_not_extracted() -> None:
    always = noisy(images(1, 8)[0], 6, 0)
    assert share(["a"] * 6, always) == 0
    assert share(["a"] * 12, torch.cat([always, noisy(TRAIN[0], 6, 1)])) == 1


def test_a_copy_generated_too_rarely_is_not_extracted() -> None:
    generated = torch.cat([noisy(TRAIN[0], 3, 0), images(7, 9)])
    assert share(["a"] * 10, generated) == 0
    assert share(["a"] * 10, generated, clique=3) == 1


def test_a_chain_is_no_clique() -> None:
    # Each within the limit of the next, none of its next but one.
    away = (images(1, 6)[0] - 0.5).sign()
    chain = torch.stack([TRAIN[0] + 0.8 * LIMIT * step * away for step in range(6)])
    assert share(["a"] * 6, chain, clique=3) == 0
    assert share(["a"] * 6, chain, clique=2) == 1


def test_copies_and_mirrored_copies_are_of_one_image() -> None:
    copies = noisy(TRAIN[0], 4, 0)
    assert share(["a"] * 4, torch.cat([copies[:2], copies[2:].flip(-1)])) == 1


def test_only_prompts_with_enough_images_are_looked_at() -> None:
    generated = torch.cat([noisy(TRAIN[0], 4, 0), images(4, 5), noisy(TRAIN[1], 3, 1)])
    flagged = extracted(["a"] * 4 + ["b"] * 4 + ["c"] * 3, generated, TRAIN, LIMIT, clique=4, tiles=2)
    assert flagged == {"a": True, "b": False}


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), cut=st.integers(1, 29))
def test_neither_order_nor_pieces_matter(seed: int, cut: int) -> None:
    parts = [noisy(TRAIN[0], 5, seed, 0.15), noisy(TRAIN[1], 5, seed, 0.1), noisy(TRAIN[2], 5, seed, 0.2)]
    generated = torch.cat([*parts, images(15, seed)])
    prompts = ["a"] * 10 + ["b"] * 5 + ["c", "d", "b"] * 5
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    expected = extracted(prompts, generated, TRAIN, LIMIT, clique=3, tiles=2)
    shuffled = [prompts[i] for i in order.tolist()]
    assert extracted(shuffled, generated[order], TRAIN, LIMIT, clique=3, tiles=2) == expected
    metric = Extraction(clique=3, tiles=2)
    for part in (slice(0, cut), slice(cut, 30)):
        metric.update(generated[order][part], "generated", shuffled[part])
        metric.update(TRAIN[part], "train")
        metric.update(HELDOUT[part], "heldout")
    metric.update(HELDOUT[30:], "heldout")
    assert float(metric.compute()) == pytest.approx(sum(expected.values()) / len(expected))


def reference(judge: Tensor = HELDOUT) -> Reference:
    train = {"pixels": TRAIN.flatten(1)}
    flipped, features = {"pixels": TRAIN.flip(-1).flatten(1)}, {"pixels": judge.flatten(1)}
    return Reference(TRAIN, len(judge), torch.arange(30), train, flipped, features, {}, {}, {"extraction": 0.0})


def sample(generated: Tensor, prompts: list[str] | None, known: Reference) -> Sample:
    return Sample(known, generated, {"pixels": generated.flatten(1)}, {}, Evidence(prompts=prompts))


def test_is_measured_at_the_heldout_images_threshold() -> None:
    generated = torch.cat([noisy(TRAIN[0], 4, 0), images(4, 5)])
    known, metric = reference(), Extraction(clique=4, tiles=2)
    for _ in range(2):
        measured = metric.measure(sample(generated, ["a"] * 4 + ["b"] * 4, known))
        assert measured.value == 0.5
        assert measured.n == 2


def test_heldout_images_are_no_copies_and_copies_among_them_are() -> None:
    assert Extraction(clique=2, tiles=2).null(reference()) == 0
    copies = torch.cat([noisy(TRAIN[0], 4, 0), HELDOUT])
    assert Extraction(rate=0.2, clique=4, tiles=2).null(reference(copies)) == 1


def test_what_is_missing_is_named() -> None:
    known, metric = reference(images(9, 1)), Extraction(tiles=2)
    few = metric.measure(sample(images(12, 2), ["a"] * 9 + ["b"] * 3, known))
    assert metric.null(known) is None
    assert few.value is None
    assert few.note == "needs 10 generated images of one prompt, got 9"
    assert metric.measure(sample(images(12, 2), None, known)).note == "there are no prompts"


def test_prompts_and_images_belong_together() -> None:
    with pytest.raises(ValueError, match="got 2 and 3"):
        extraction(["a", "b"], images(3, 0), TRAIN, LIMIT)
    metric = Extraction()
    with pytest.raises(ValueError, match="prompts"):
        metric.update(images(3, 0), "generated")
    with pytest.raises(ValueError, match="prompts"):
        metric.update(images(3, 0), "train", ["a"] * 3)
    with pytest.raises(ValueError, match="prompts"):
        metric.update(images(3, 0), "generated", ["a"])


@pytest.mark.parametrize(
    ("setting", "value"), [("rate", 0.0), ("rate", 1.0), ("rate", float("nan")), ("clique", 1), ("tiles", 0)]
)
def test_settings_out_of_range_are_refused(setting: str, value: float) -> None:
    with pytest.raises(InputError, match=f"extraction.{setting}={value}"):
        Extraction(**{setting: value})  # type: ignore[arg-type]


def test_more_extracted_is_worse() -> None:
    assert Extraction.higher_is_better is False
    assert (Extraction.plot_lower_bound, Extraction.plot_upper_bound) == (0, 1)
    assert Extraction.needs == {"images", "prompts"}
