"""What a policy may know about layer groups and about a task as a whole.

Every number means the same on any backbone, data set, method and group scheme: shares, logarithms, and what is relative
to the denoiser as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from envs.group_probes import GroupProbes, Probe
from envs.groups import KINDS, PARTS, LayerGroup
from envs.task import InnerBudget
from envs.task_probes import TaskProbes

GROUP_FEATURES = (
    "depth",
    *(f"part_{part}" for part in PARTS),
    *(f"kind_{kind}" for kind in KINDS),
    "resolution",
    "log_channels",
    "log_parameters",
    "share",
    "log_trainable_share",
    "weight_norm",
    "gradient_train",
    "gradient_heldout",
    "fisher_train",
    "fisher_heldout",
    "gradient_cosine",
)
"""Names of the columns of `feature_matrix`."""

TASK_FEATURES = (
    "log_train_images",
    "log_steps",
    "log_batch_size",
    "log_learning_rate",
    "log_epochs",
    "log_loss_train",
    "log_loss_heldout",
    "log_loss_ratio",
    "log_nearest_ratio",
    "log_trainable_share",
)
"""Names of the entries of `task_vector`."""


def feature_matrix(
    toggles: Sequence[LayerGroup], probes: GroupProbes, trainable: Sequence[int], total: int
) -> NDArray[np.float32]:
    """One row of `GROUP_FEATURES` a toggle, in [-1, 1] for gradients and weights and in about [0, 1] for the rest.

    Norms of weights, gradients and the Fisher trace are taken per parameter, as decimal logarithms of their ratio to
    the denoiser's, for held-out images too to the denoiser's on training images: the difference between the two columns
    is then what training images alone pull at. One unit is a factor of 100, of the trace one of 10,000.

    Args:
        toggles: What a mask switches.
        probes: One a toggle.
        trainable: Numbers that the method trains in each toggle.
        total: Numbers in the base model's denoiser.
    """
    weight, gradient, _, fisher, _ = _densities(probes.denoiser)
    references = (weight, gradient, gradient, fisher, fisher)
    rows = [
        (
            group.depth,
            *(float(group.part == part) for part in PARTS),
            *group.kinds,
            group.resolution,
            math.log10(group.channels) / 4,
            math.log10(max(group.parameters, 1)) / 9,
            group.parameters / total,
            _log_share(count / total),
            *map(_relative, _densities(probe), references),
            probe.gradient_cosine,
        )
        for group, probe, count in zip(toggles, probes.groups, trainable, strict=True)
    ]
    return np.asarray(rows, dtype=np.float32)


def with_mitigations(features: NDArray[np.float32], toggled: Sequence[str]) -> NDArray[np.float32]:
    """The rows of layer groups and, below, one for each mitigation that is left out or not, ``(g + m, f + m)``.

    Its row has a 1 in the column named ``mitigation_<name>``, which are the last ones, and 0 everywhere else: it is no
    part of the network.
    """
    rows, columns = features.shape
    wider = np.zeros((rows + len(toggled), columns + len(toggled)), dtype=np.float32)
    wider[:rows, :columns] = features
    wider[rows:, columns:] = np.eye(len(toggled), dtype=np.float32)
    return wider


def task_vector(
    train_images: int, inner: InnerBudget, probes: TaskProbes, trainable_share: float
) -> NDArray[np.float32]:
    """`TASK_FEATURES`: logarithms, scaled to lie within about [0, 1], the two of ratios within [-1, 1].

    A ratio, held-out over training, is in doublings, cut off at one.

    Args:
        train_images: How many.
        inner: The inner budget.
        probes: Of the images and the base model.
        trainable_share: What the method trains with everything on, as a share of the base model's denoiser.
    """
    epochs = inner.steps * inner.batch_size / train_images
    return np.asarray(
        [
            math.log10(train_images) / 5,
            math.log10(inner.steps) / 5,
            math.log10(inner.batch_size) / 3,
            (math.log10(inner.learning_rate) + 6) / 5,
            (math.log10(epochs) + 1) / 5,
            _log_loss(probes.loss_train),
            _log_loss(probes.loss_heldout),
            _doublings(probes.loss_heldout, probes.loss_train),
            0.0 if probes.nearest_train is None else _doublings(probes.nearest_heldout, probes.nearest_train),
            _log_share(trainable_share),
        ],
        dtype=np.float32,
    )


def _densities(probe: Probe) -> tuple[float, ...]:
    """Squares per parameter: of weights, of both mean gradients, of both sets' single gradients."""
    squares = (
        probe.weight_norm**2,
        probe.gradient_norm_train**2,
        probe.gradient_norm_heldout**2,
        probe.fisher_trace_train,
        probe.fisher_trace_heldout,
    )
    return tuple(square / probe.parameters for square in squares)


def _relative(value: float, reference: float) -> float:
    """A quarter of the decimal logarithm of a ratio, within [-1, 1]; -1 where there is nothing."""
    if not value or not reference:
        return -1.0
    return min(max(math.log10(value / reference) / 4, -1.0), 1.0)


def _log_share(share: float) -> float:
    """0 for a millionth or nothing, 1 for everything."""
    return (math.log10(max(share, 1e-6)) + 6) / 6


def _log_loss(loss: float) -> float:
    """0 for 0.0001 or less, 1 for the loss of a prediction of 0."""
    return (math.log10(max(loss, 1e-4)) + 4) / 4


def _doublings(value: float, reference: float) -> float:
    """Binary logarithm of a ratio, within [-1, 1]."""
    if not value or not reference:
        return float(np.sign(value - reference))
    return min(max(math.log2(value / reference), -1.0), 1.0)
