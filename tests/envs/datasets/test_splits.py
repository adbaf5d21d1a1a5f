from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.datasets.base import DatasetCard, ImageSet, Reject, SplitDataset
from envs.datasets.splits import SPLITS, check_disjoint, split
from rewards.errors import InputError

CARD = DatasetCard("a test", "none")


def image_set(sizes: list[int], copies: list[tuple[int, int]] = []) -> ImageSet:  # noqa: B006
    """Patients with the given numbers of images; of each pair of rows the second becomes a copy of the first."""
    groups = tuple(f"p{k}" for k, size in enumerate(sizes) for _ in range(size))
    n = len(groups)
    images = np.random.default_rng(0).integers(0, 250, (n, 16, 16, 3), dtype=np.uint8)
    for step, (source, copy) in enumerate(copies):
        images[copy] = images[source] + step % 2
    ids = tuple(f"i{k:03}" for k in range(n))
    return ImageSet(images, ids, groups, tuple(f"caption {k}" for k in range(n)), np.arange(n))


def cut(images: ImageSet, train: int, heldout: int, test: int, seed: int = 0, **more: Any) -> SplitDataset:
    return split("some", images, CARD, train=train, heldout=heldout, test=test, seed=seed, **({"radius": 0.016} | more))


def parts(dataset: SplitDataset) -> dict[str, ImageSet]:
    return {name: getattr(dataset, name) for name in SPLITS}


@st.composite
def populations(draw: st.DrawFn) -> tuple[ImageSet, list[set[str]]]:
    """A set of images and, found by merging sets one by one, the clusters of ids in it."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=2, max_size=14))
    n = sum(sizes)
    order = draw(st.permutations(range(n)))
    # Sources come from the first half and copies from the second, so that no copy is overwritten by another.
    half = max(1, n // 2)
    sources = st.integers(0, half - 1)
    copies = [(order[draw(sources)], copy) for copy in order[half:] if draw(st.integers(0, 3)) == 0]
    images = image_set(sizes, copies)
    clusters = [{f"i{k:03}" for k in range(n) if images.groups[k] == f"p{g}"} for g in range(len(sizes))]
    for source, copy in copies:
        one, other = (next(c for c in clusters if f"i{row:03}" in c) for row in (source, copy))
        if one is not other:
            clusters.remove(other)
            one |= other
    return images, clusters


@settings(max_examples=150, deadline=None)
@given(population=populations(), data=st.data())
def test_splits_are_exact_and_share_no_cluster(
    population: tuple[ImageSet, list[set[str]]], data: st.DataObject
) -> None:
    images, clusters = population
    third = 1 + len(images) // 3
    train, heldout, test = (data.draw(st.integers(least, third)) for least in (1, 1, 0))
    seed = data.draw(st.integers(0, 5), "seed")
    largest = max(len(cluster) for cluster in clusters)
    try:
        dataset = cut(images, train, heldout, test, seed)
    except InputError:
        # At worst train and held-out each waste all but one image of a largest cluster.
        assert len(images) < train + heldout + test + 2 * (largest - 1)
        return
    assert [len(part) for part in parts(dataset).values()] == [train, heldout, test]
    chosen = [image_id for part in parts(dataset).values() for image_id in part.ids]
    assert len(set(chosen)) == train + heldout + test
    for cluster in clusters:
        assert sum(bool(cluster & set(part.ids)) for part in parts(dataset).values()) <= 1
    where = {name: row for row, name in enumerate(images.ids)}
    for part in parts(dataset).values():
        original = images.take([where[name] for name in part.ids])
        np.testing.assert_array_equal(part.images, original.images)
        assert (part.groups, part.captions) == (original.groups, original.captions)

    shuffled = cut(images.take(data.draw(st.permutations(range(len(images))), "order")), train, heldout, test, seed)
    assert shuffled.split_sha256 == dataset.split_sha256
    assert shuffled.near_duplicates == dataset.near_duplicates


def test_the_seed_decides() -> None:
    images = image_set([1] * 40)
    hashes = [cut(images, 10, 10, 10, seed).split_sha256 for seed in (0, 1, 2, 0)]
    assert len(set(hashes)) == 3
    assert hashes[0] == hashes[3]


def test_every_image_is_drawn_as_often_as_any_other() -> None:
    images = image_set([1] * 12)
    draws = [cut(images, 3, 3, 3, seed) for seed in range(400)]
    for name in SPLITS:
        counts = np.array([sum(i in getattr(draw, name).ids for draw in draws) for i in images.ids])
        # 400 draws with probability 1/4 each: 100 with standard deviation 8.7.
        assert np.abs(counts - 100).max() < 40


@pytest.mark.parametrize("seed", range(10))
def test_clusters_that_just_fit_are_packed(seed: int) -> None:
    images = image_set([5, 3, 1, 1, 1, 1])
    dataset = cut(images, 6, 4, 2, seed)
    assert sorted(i for part in parts(dataset).values() for i in part.ids) == sorted(images.ids)


def test_a_copy_ties_its_whole_patient_and_is_reported() -> None:
    images = image_set([2, 2, 1, 1], copies=[(1, 2), (4, 5)])
    dataset = cut(images, 4, 1, 0, radius=0.016)
    assert set(dataset.train.groups) == {"p0", "p1"}
    assert dataset.near_duplicates == (("i001", "i002"), ("i004", "i005"))


def test_a_copy_within_one_patient_is_kept_and_not_reported() -> None:
    dataset = cut(image_set([2, 1], copies=[(0, 1)]), 2, 1, 0)
    assert dataset.train.ids == ("i000", "i001")
    assert dataset.near_duplicates == ()


def test_the_hash_covers_images_captions_ids_and_their_split() -> None:
    images = image_set([1] * 9)
    base = cut(images, 3, 3, 3)
    pixel = images.images.copy()
    pixel[4, 3, 3, 1] ^= 1
    renamed = tuple(f"j{name[1:]}" for name in images.ids)
    others = [
        cut(dataclasses.replace(images, images=pixel), 3, 3, 3),
        cut(dataclasses.replace(images, captions=(*images.captions[:-1], "another")), 3, 3, 3),
        cut(dataclasses.replace(images, ids=renamed), 3, 3, 3),
        cut(images, 3, 3, 2),
        cut(images, 4, 2, 3),
    ]
    assert len({base.split_sha256, *(other.split_sha256 for other in others)}) == 6
    assert len(base.split_sha256) == 64


def test_card_name_and_rejects_are_carried() -> None:
    dataset = cut(image_set([1] * 3), 1, 1, 1, rejects=[Reject("x", "constant")])
    assert (dataset.name, dataset.card, dataset.rejects) == ("some", CARD, (Reject("x", "constant"),))


@pytest.mark.parametrize(
    ("sizes", "wanted", "message"),
    [
        ([1, 1, 1], (2, 1, 1), r"3 images of 3 patients \(3 clusters\) and cannot fill train=2, heldout=1, test=1"),
        ([9], (1, 1, 0), r"9 images of 1 patients \(1 clusters\) and cannot fill train=1, heldout=1, test=0"),
        ([4, 4], (1, 1, 1), "8 images of 2 patients"),
        ([1, 1, 1], (0, 1, 1), "splits of train=0"),
        ([1, 1, 1], (1, 0, 1), "heldout=0"),
        ([1, 1, 1], (1, 1, -1), "test=-1"),
    ],
)
def test_too_few_patients_and_sizes_out_of_range_are_refused(
    sizes: list[int], wanted: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        cut(image_set(sizes), *wanted)


def test_a_negative_seed_and_repeated_ids_are_refused() -> None:
    images = image_set([1, 1, 1])
    with pytest.raises(InputError, match="seed=-1"):
        cut(images, 1, 1, 1, seed=-1)
    with pytest.raises(ValueError, match="ids are not unique"):
        cut(images.take([0, 1, 2, 2]), 1, 1, 1)


def test_declared_splits_are_kept_to() -> None:
    images = image_set([2, 1, 1, 1, 1, 1])
    declared = ["train", "train", "Validation", "test", "train", "heldout", ""]
    dataset = cut(images, 3, 2, 1, declared=declared)
    assert set(dataset.train.ids) == {"i000", "i001", "i004"}
    assert set(dataset.heldout.ids) == {"i002", "i005"}
    assert dataset.test.ids == ("i003",)
    order = [6, 3, 1, 0, 5, 2, 4]
    shuffled = cut(images.take(order), 3, 2, 1, declared=[declared[k] for k in order])
    assert shuffled.split_sha256 == dataset.split_sha256
    with pytest.raises(InputError, match="declared as train=3, heldout=2, test=1, and cannot fill train=2, heldout=3"):
        cut(images, 2, 3, 1, declared=declared)


def test_a_patient_in_two_declared_splits_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="patient p1 is in the splits train and test"):
        cut(image_set([1, 2, 1]), 1, 1, 1, declared=["train", "train", "test", "heldout"])


def test_a_copy_across_declared_splits_leaves_with_its_patient() -> None:
    images = image_set([1, 2, 1, 1], copies=[(0, 1)])
    declared = ["train", "heldout", "heldout", "heldout", "test"]
    dataset = cut(images, 1, 1, 1, declared=declared)
    assert (dataset.train.ids, dataset.heldout.ids, dataset.test.ids) == (("i000",), ("i003",), ("i004",))
    reason = "declared as heldout, but near-duplicates tie its patient to train"
    assert dataset.rejects == (Reject("i001", reason), Reject("i002", reason))
    assert dataset.near_duplicates == (("i000", "i001"),)
    with pytest.raises(InputError, match="declared as train=1, heldout=1, test=1, and cannot fill train=2"):
        cut(images, 2, 1, 1, declared=declared)


@pytest.mark.parametrize(
    ("declared", "message"),
    [(["train", "valid", "test"], "declares a split 'valid'"), (["", "", ""], "the source declares no split")],
)
def test_declared_splits_that_mean_nothing_are_refused(declared: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cut(image_set([1, 1, 1]), 1, 1, 1, declared=declared)


def test_check_disjoint_refuses_a_shared_patient_and_a_shared_picture() -> None:
    images = image_set([2, 1, 1, 1, 1], copies=[(2, 3)])
    good = cut(images, 2, 2, 1)
    check_disjoint(good)
    a_patient = dataclasses.replace(good, train=images.take([0, 3]), heldout=images.take([4, 1]), near_duplicates=())
    with pytest.raises(InputError, match="patient p0 is in the splits train and heldout"):
        check_disjoint(a_patient)
    a_picture = dataclasses.replace(good, train=images.take([0, 2]), heldout=images.take([4]), test=images.take([3]))
    with pytest.raises(InputError, match="i002 in train and i003 in test are near-duplicates"):
        check_disjoint(a_picture)
