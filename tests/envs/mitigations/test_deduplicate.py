from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.datasets import SplitDataset
from envs.datasets.base import ImageSet
from envs.evaluators.finetune import FineTuneEvaluator
from envs.groups import find_groups
from envs.mitigations import find_mitigations
from envs.mitigations.deduplicate import Deduplication
from envs.task import Schedule, SelectionTask
from rewards.errors import InputError
from tests.envs.mitigations.conftest import ALL, BUDGET, Ward, losses_after, same


def image_set(count: int, copies_of: dict[int, int], noise: float = 4.0) -> ImageSet:
    """Images of coarse blocks; ``copies_of`` adds noisy copies of some of them, whose ids come first."""
    random = np.random.default_rng(0)
    originals = np.repeat(np.repeat(random.integers(0, 256, (count, 4, 4, 3)), 8, axis=1), 8, axis=2)
    rows = [*range(count), *(row for row, copies in copies_of.items() for _ in range(copies))]
    pixels = originals[rows] + random.normal(0, noise, (len(rows), 32, 32, 3))
    ids = [f"original {row}" for row in range(count)] + [f"copy {i}" for i in range(len(rows) - count)]
    return ImageSet(
        pixels.clip(0, 255).astype(np.uint8),
        tuple(ids),
        tuple(ids),
        tuple(f"caption of {id}" for id in ids),
        np.arange(len(rows)),
    )


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(9)), seed=st.integers(0, 2**31))
def test_one_of_each_cluster_stays_and_neither_seed_nor_order_matters(order: list[int], seed: int) -> None:
    images = image_set(5, {1: 3, 4: 1})
    kept = Deduplication().prepared(images.take(order), seed)
    assert set(kept.ids) == {"original 0", "original 2", "original 3", "copy 0", "copy 3"}
    for i, id in enumerate(kept.ids):
        row = images.ids.index(id)
        assert kept.captions[i] == images.captions[row]
        assert kept.labels[i] == images.labels[row]
        assert np.array_equal(kept.images[i], images.images[row])


def test_the_rest_keeps_its_order() -> None:
    order = [3, 0, 6, 2, 1, 5]
    images = image_set(5, {1: 3, 4: 1}).take(order)
    kept = Deduplication().prepared(images, 0)
    assert kept.ids == tuple(id for id in images.ids if id in kept.ids)


def test_at_radius_0_only_identical_images_are_duplicates() -> None:
    noisy, exact = image_set(4, {0: 2}), image_set(4, {0: 2}, noise=0)
    assert len(Deduplication(radius=0.0).prepared(noisy, 0)) == 6
    assert len(Deduplication(radius=0.0).prepared(exact, 0)) == 4


def test_without_duplicates_it_is_plain_training(ward: Ward) -> None:
    chosen = {"deduplicate": {"radius": 0.005}}
    assert ward.regimen(chosen).treatment.figures == {"deduplicate.left_out": 0.0}
    assert same(ward.after(chosen), ward.after({})), "bit by bit"


def repeated(dataset: SplitDataset, times: int) -> SplitDataset:
    """With the first training image so many times more, under other ids."""
    train = dataset.train.take([*range(len(dataset.train)), *[0] * times])
    ids = (*dataset.train.ids, *(f"{dataset.train.ids[0]} again {i}" for i in range(times)))
    return dataclasses.replace(dataset, train=dataclasses.replace(train, ids=ids))


@pytest.mark.slow
def test_a_repeated_image_is_memorized_less(overfitting: Ward) -> None:
    ward = dataclasses.replace(overfitting, dataset=repeated(overfitting.dataset, 8)).of(steps=20)
    plain, treated = (losses_after(ward, chosen)[1] for chosen in ({}, {"deduplicate": {"radius": 0.005}}))
    assert treated[0] > 1.1 * plain[0], "the repeated image is known less"
    assert treated[1:4].mean() < plain[1:4].mean(), "and the others are seen more often"


def test_an_evaluation_reports_how_many_were_left_out(ward: Ward) -> None:
    dataset = repeated(ward.dataset, 2)
    task = SelectionTask(
        env="phantom",
        split_sha256="",
        backbone="tiny",
        backbone_sha256="",
        method="bias_norm",
        scheme="blocks",
        groups=tuple(group.name for group in find_groups(ward.backbone.denoiser, "blocks")),
        inner=dataclasses.replace(BUDGET, steps=2),
        metrics=("membership",),
        options={"mitigations": {"deduplicate": {"radius": 0.005}}},
    )
    evaluator = FineTuneEvaluator(task, dataset, ward.backbone)
    assert evaluator.evaluate(ALL).figures == {"deduplicate.left_out": 2.0}
    assert evaluator.evaluate(Schedule.from_key("00000000")).figures == {}, "the base model has nothing left out"


@pytest.mark.parametrize("radius", [-0.1, 1.5, "0.1", float("nan"), True])
def test_settings_out_of_range(radius: float) -> None:
    with pytest.raises(InputError, match=r"mitigation\.deduplicate\.radius="):
        find_mitigations({"deduplicate": {"radius": radius}})
