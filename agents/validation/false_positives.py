"""False positives: is the stated rate kept on real images that were not trained on?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from scipy.stats import betabinom
from torch import Tensor

from agents.parts import Parts
from agents.validation.images import draw, one_each
from agents.validation.planted import DEFAULT
from agents.validation.settings import ValidateSettings
from envs.seeding import torch_generator
from rewards.alignment import ALIGNED_PIXELS, ALIGNMENT_CANDIDATES, CANDIDATES, aligned_neighbors
from rewards.calibration import bootstrap_mean, threshold, wilson
from rewards.errors import InputError
from rewards.features import cached_embedding
from rewards.memorization.copy_rate import DETECTOR, copies, copy_threshold
from rewards.neighbors import nearest_neighbors

BY_RANK = ", by rank"
"""Marks a distance whose threshold is an order statistic: its rate is the stated one by proof; that checks the rest."""

_Detector = Callable[[Tensor, Tensor], int]


class _Split(NamedTuple):
    train: Tensor
    calibration: Tensor
    others: Tensor


def false_positives(settings: ValidateSettings, results: Parts) -> dict[str, Any]:
    """Each data set's flagged rate over the resplits, beside the stated one."""
    found = {env: _of(settings, env) for env in settings.envs}
    goals = []
    for env, each in found.items():
        mean, low, high, _ = each["detectors"][DEFAULT]["mean"]
        goals.append(
            {
                "goal": f"{env}: the stated rate lies in the interval of the mean over {each['resplits']} resplits",
                "found": f"{mean:.3%} [{low:.3%}, {high:.3%}], stated {each['stated']:.3%}",
                "met": low <= each["stated"] <= high,
            }
        )
    return {"envs": found, "goals": goals}


def _of(settings: ValidateSettings, env: str) -> dict[str, Any]:
    own = settings.false_positives
    # The images are shared out again below, so it does not matter which part they come from.
    dataset = draw(settings, env, train=1, heldout=own.images - 1)
    images = torch.cat([one_each(part, dataset.near_duplicates) for part in (dataset.train, dataset.heldout)])
    judged = len(images) - own.train - own.calibration
    if judged < 1:
        raise InputError(
            f"false_positives.images={own.images} are {len(images)} patients of {env}, which leaves none to judge",
            "raise it",
        )
    pairs = _pairs(images)
    splits = (
        _split(len(images), own.train, own.calibration, settings.seed, index)
        for index in range(own.resplits + own.long_run)
    )
    distances = [_nearest(pairs, split) for split in splits]
    stated = copy_threshold(distances[0][0], own.rate).rate
    detectors = _detectors(own.rate)
    return {
        "split_sha256": dataset.split_sha256,
        "images": len(images),
        "train": own.train,
        "calibration": own.calibration,
        "judged": judged,
        "resplits": own.resplits,
        "rate": own.rate,
        "stated": stated,
        "expected": _expected(judged, own.calibration, stated),
        "long_run": own.long_run,
        "detectors": {
            name: _rates([detect(*each) for each in distances], judged, own.resplits, stated)
            for name, detect in detectors.items()
        },
    }


def _detectors(rate: float) -> dict[str, _Detector]:
    """How many of the others ``(n, e)`` each flags, given the distances of the calibration images ``(m, e)``."""

    def by_score(columns: list[int]) -> _Detector:
        return lambda calibration, others: int(copies(others[:, columns], calibration[:, columns], rate).sum())

    def by_rank(column: int) -> _Detector:
        return lambda calibration, others: int(
            (others[:, column] < threshold(calibration[:, column], rate).value).sum()
        )

    detectors = {DEFAULT: by_score(list(range(len(DETECTOR))))}
    detectors |= {name: by_score([column]) for column, name in enumerate(DETECTOR)}
    return detectors | {f"{name}{BY_RANK}": by_rank(column) for column, name in enumerate(DETECTOR)}


def _rates(flagged: list[int], judged: int, resplits: int, stated: float) -> dict[str, Any]:
    shares = torch.tensor(flagged).double() / judged
    intervals = [wilson(count, judged) for count in flagged]
    covered = sum(low <= stated <= high for _, low, high, _ in intervals if low is not None and high is not None)
    return {
        "mean": bootstrap_mean(shares[:resplits]),
        "long_run": bootstrap_mean(shares[resplits:]),
        "flagged": flagged[:resplits],
        "covered": covered / len(intervals),
    }


def _expected(judged: int, calibration: int, stated: float) -> list[float]:
    """The probability of each number of flagged images for a score that is exchangeable: beta-binomial."""
    k = round(stated * (calibration + 1))
    return [float(betabinom.pmf(count, judged, k, calibration + 1 - k)) for count in range(judged + 1)]


def _pairs(images: Tensor) -> dict[str, Tensor]:
    """All images' distances to each other ``(n, n)``, by distance; a mirror image counts as the image."""
    n, pairs = len(images), {}
    for name in ALIGNMENT_CANDIDATES:
        embed = cached_embedding(name)
        found = nearest_neighbors(embed(images), embed(images), flipped_gallery=embed(images.flip(-1)), k=n)
        pairs[name] = torch.empty(n, n, dtype=torch.float64).scatter_(1, found.indices, found.distances)
    columns = [aligned_neighbors(images, images, torch.full((n, 1), row)).distances for row in range(n)]
    return pairs | {ALIGNED_PIXELS: torch.cat(columns, dim=1)}


def _split(n: int, train: int, calibration: int, seed: int, index: int) -> _Split:
    order = torch.randperm(n, generator=torch_generator(seed, "resplit", index))
    return _Split(order[:train], order[train : train + calibration], order[train + calibration :])


def _nearest(pairs: dict[str, Tensor], split: _Split) -> tuple[Tensor, Tensor]:
    """Distances to the nearest training image ``(m, e)``, of calibration images and of the others.

    Only the training images that the detector would align are looked at in the aligned distance.
    """
    found = []
    for rows in (split.calibration, split.others):
        among = {name: matrix[rows][:, split.train] for name, matrix in pairs.items()}
        k = min(CANDIDATES, len(split.train))
        candidates = torch.cat([among[name].topk(k, largest=False).indices for name in ALIGNMENT_CANDIDATES], dim=1)
        among[ALIGNED_PIXELS] = among[ALIGNED_PIXELS].gather(1, candidates)
        found.append(torch.stack([among[name].amin(1) for name in DETECTOR], dim=1))
    return found[0], found[1]
