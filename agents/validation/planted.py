"""Planted copies: how many of those that are known to be there does each detector find?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from agents.parts import Parts
from agents.validation.images import PERTURBATIONS, as_tensor, draw
from agents.validation.settings import ValidateSettings
from rewards.estimate import Estimate
from rewards.features import cached_embedding
from rewards.memorization.authenticity import Authenticity
from rewards.memorization.copy_rate import DETECTOR, CopyRate
from rewards.memorization.nearest_ratio import NearestRatio
from rewards.metric import RewardMetric
from rewards.neighbors import Neighbors
from rewards.sample import Sample
from rewards.suite import Suite

DEFAULT = "copy_rate"
"""What the default detector is called here; its distances alone go by their own names."""

GOALS: Mapping[str, float] = {
    "untouched": 0.95,
    "flipped": 0.95,
    "noise, sd 4": 0.95,
    "shifted 2 px right": 0.8,
    "shifted 2 px right and down": 0.8,
}
"""The least share of planted copies that the default detector has to find at 1 % false positives."""

_Detector = Callable[[Sample], Estimate]


def planted(settings: ValidateSettings, results: Parts) -> dict[str, Any]:
    """Each data set's recovered shares, sensitivities and false positives, and the goals."""
    found = {env: _of(settings, env) for env in settings.envs}
    return {"envs": found, "goals": [goal for env, each in found.items() for goal in _goals(env, each)]}


def _of(settings: ValidateSettings, env: str) -> dict[str, Any]:
    own = settings.planted
    dataset = draw(settings, env, train=own.images, heldout=own.calibration, test=own.images)
    train, calibration, others = (as_tensor(s.images) for s in (dataset.train, dataset.heldout, dataset.test))
    suite = Suite(["copy_rate", "nearest_ratio", "authenticity"], embed=cached_embedding)
    reference = suite.reference(train, calibration)
    unseen = suite.sample(reference, others)
    detectors = _detectors(own.rate)
    none = {name: detect(unseen) for name, detect in detectors.items()}
    perturbed = {}
    for perturbation, change in PERTURBATIONS.items():
        copies = suite.sample(reference, change(train, settings.seed))
        perturbed[perturbation] = {
            "sensitivity": {name: detect(copies) for name, detect in detectors.items()},
            "recovered": [
                {
                    "planted": count / own.images,
                    "copies": count,
                    **{name: detect(_mixed(copies, unseen, count)) for name, detect in detectors.items()},
                }
                for count in (round(share * own.images) for share in own.shares)
            ],
        }
    return {
        "split_sha256": dataset.split_sha256,
        "source": dataset.card.source,
        "train": len(train),
        "calibration": len(calibration),
        "generated": own.images,
        "rate": own.rate,
        "stated": CopyRate(rate=own.rate).null(reference),
        "false_positives": none,
        "perturbations": perturbed,
    }


def _detectors(rate: float) -> dict[str, _Detector]:
    authenticity, ratio = Authenticity(), NearestRatio()

    def unauthentic(sample: Sample) -> Estimate:
        value, low, high, n = authenticity.estimate(sample)
        return Estimate(1 - value, None if high is None else 1 - high, None if low is None else 1 - low, n)

    by_distance: dict[str, RewardMetric] = {DEFAULT: CopyRate(rate=rate)}
    by_distance |= {name: CopyRate([name], rate) for name in DETECTOR}
    return {
        **{name: metric.estimate for name, metric in by_distance.items()},
        "nearest_ratio": ratio.estimate,
        "1 - authenticity": unauthentic,
    }


def _mixed(copies: Sample, unseen: Sample, count: int) -> Sample:
    """The first copies, and held-out images in place of the others."""

    def rows(one: Tensor, other: Tensor) -> Tensor:
        return torch.cat([one[:count], other[count:]])

    return replace(
        unseen,
        images=rows(copies.images, unseen.images),
        features={name: rows(copies.features[name], other) for name, other in unseen.features.items()},
        neighbors={
            name: Neighbors(
                rows(copies.neighbors[name].distances, other.distances),
                rows(copies.neighbors[name].indices, other.indices),
            )
            for name, other in unseen.neighbors.items()
        },
    )


def _goals(env: str, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    value, low, high, _ = found["false_positives"][DEFAULT]
    stated = found["stated"]
    # What the threshold lets through is no copy: the share without it, (value - stated) / (1 - stated).
    net = [max(0.0, (share - stated) / (1 - stated)) for share in (value, low, high)]
    goals = [
        {
            "goal": f"{env}: without copies, the interval of the flagged share, less the stated rate, covers 0",
            "found": f"flagged {value:.2%} [{low:.2%}, {high:.2%}] (0 {'inside' if low <= 0 else 'outside'}); less the "
            f"stated {stated:.2%}: {net[0]:.2%} [{net[1]:.2%}, {net[2]:.2%}]",
            "met": low <= stated <= high,
        }
    ]
    for perturbation, least in GOALS.items():
        share = found["perturbations"][perturbation]["sensitivity"][DEFAULT][0]
        goals.append(
            {
                "goal": f"{env}: at least {least:.0%} of copies found, {perturbation}",
                "found": f"{share:.1%}",
                "met": share >= least,
            }
        )
    return goals
