"""A look at the base model and at the images before a search, for what a policy may know about them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from envs.backbones.base import Backbone
from envs.batches import TrainingSet
from envs.datasets.base import ImageSet, SplitDataset
from envs.features import feature_matrix, task_vector
from envs.group_probes import GroupProbes, Probe, probe_groups
from envs.groups import LayerGroup
from envs.methods import Attachment
from envs.seeding import torch_generator
from envs.task import InnerBudget
from envs.task_probes import TaskProbes, probe_task

_IMAGES = 32


def probed(
    backbone: Backbone,
    dataset: SplitDataset,
    toggles: Sequence[LayerGroup],
    *,
    draws: int,
    threads: int,
    seed: int,
) -> tuple[GroupProbes, TaskProbes]:
    """Measures both on 32 training and 32 held-out images, or as many as there are. The test split is not looked at.

    Args:
        backbone: In its pretrained state, without a method.
        dataset: The images.
        toggles: What a mask switches.
        draws: Size of the grid of denoising losses.
        threads: Of torch: another number rounds differently, and a run that is resumed sees the same.
        seed: Draws images and noises.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        train, heldout = (_some(part, seed) for part in (dataset.train, dataset.heldout))
        empty = backbone.encode_captions([""])
        of_train, of_heldout = (
            TrainingSet(backbone.encode_images(part.images), backbone.encode_captions(part.captions), empty)
            for part in (train, heldout)
        )
        return (
            probe_groups(backbone, toggles, of_train, of_heldout, seed=seed),
            probe_task(
                backbone,
                of_train,
                of_heldout,
                dataset.train.images,
                dataset.heldout.images,
                draws=draws,
                seed=seed,
            ),
        )
    finally:
        torch.set_num_threads(before)


def seen_by_policy(
    backbone: Backbone,
    dataset: SplitDataset,
    toggles: Sequence[LayerGroup],
    trainable: Sequence[int],
    inner: InnerBudget,
    *,
    threads: int,
    seed: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`feature_matrix` of the toggles and `task_vector`: everything that a policy knows before it chooses.

    Args:
        backbone: In its pretrained state, without a method.
        dataset: The images; the test split is not looked at.
        toggles: What a mask switches.
        trainable: How many numbers the method may train in each.
        inner: The inner budget.
        threads: See `probed`.
        seed: See `probed`.
    """
    total = sum(parameter.numel() for parameter in backbone.denoiser.parameters())
    groups, task = probed(backbone, dataset, toggles, draws=inner.loss_draws, threads=threads, seed=seed)
    return (
        feature_matrix(toggles, groups, trainable, total),
        task_vector(len(dataset.train), inner, task, sum(trainable) / total),
    )


def trainable_counts(attachment: Attachment) -> list[int]:
    """How many numbers each toggle may train."""
    return [sum(parameter.numel() for parameter in toggle.values()) for toggle in attachment.parameters]


def invented_probes(parameters: Sequence[int], seed: int) -> tuple[GroupProbes, TaskProbes]:
    """**Invented numbers** of the same form, for the synthetic evaluator, which has no model to look at.

    Args:
        parameters: Of each toggle.
        seed: Draws them.
    """
    rng = np.random.default_rng(seed)
    drawn = [(count, rng.lognormal(size=5), rng.uniform(-1, 1)) for count in parameters]
    total = sum(parameters)
    probes, whole = [_invented(*each) for each in drawn], _invented(total, np.ones(5), 0.0)
    return GroupProbes(tuple(probes), whole), TaskProbes(0.1, 0.1, 0.1, 0.1)


def _invented(count: int, densities: NDArray[np.float64], cosine: float) -> Probe:
    """Norms grow with the root of the number of parameters, traces with the number."""
    norms, traces = densities[:3] * count**0.5, densities[3:] * count
    return Probe._make((count, *norms.tolist(), *traces.tolist(), cosine))


def _some(images: ImageSet, seed: int) -> ImageSet:
    order = torch.randperm(len(images), generator=torch_generator(seed, "probed images"))
    return images.take(order[:_IMAGES].tolist())
