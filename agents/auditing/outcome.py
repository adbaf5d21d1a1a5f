"""What an audit found, and how it is written down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from agents.auditing.images import RealImages, set_hash
from agents.auditing.model import Answers
from agents.auditing.settings import AuditSettings
from agents.auditing.thresholds import Check, Thresholds
from agents.result import SCHEMA, git_state, hardware, versions
from rewards.measurement import Measurement
from rewards.memorization.copy_rate import CopyRate, copy_scores, copy_threshold
from rewards.sample import Sample

PAIRS = 24
"""How many of the closest pairs are shown."""


@dataclass(frozen=True)
class Pair:
    """A generated image beside the training image that it is nearest to.

    Attributes:
        generated: Its row.
        train: Row of the training image.
        distance: In which distance the two are closest, by its null's quantiles.
        value: How far apart.
        score: That distance's quantile among held-out images', in [0, 1).
        flagged: True if the detector takes it for a copy.
    """

    generated: int
    train: int
    distance: str
    value: float
    score: float
    flagged: bool


@dataclass(frozen=True)
class Outcome:
    """What an audit found.

    Attributes:
        id: Of what was audited and how: the same call has the same id.
        detector: What decides which generated images are copies.
        real: Training and held-out images.
        answers: Generated images, and what else a model showed.
        sample: What the metrics looked at.
        measurements: By metric.
        checks: Every limit of the thresholds.
        hashes: SHA-256 of every image's pixels, of ``generated``, ``train`` and ``heldout``.
        model_sha256: Of a pipeline's files; None if images were audited.
        seconds: Wall time.
    """

    id: str
    detector: CopyRate
    real: RealImages
    answers: Answers
    sample: Sample
    measurements: Mapping[str, Measurement]
    checks: Sequence[Check]
    hashes: Mapping[str, Sequence[str]]
    model_sha256: str | None
    seconds: float

    @property
    def passed(self) -> bool:
        """True if some limit was looked at and none was broken."""
        looked_at = [check.passed for check in self.checks if check.passed is not None]
        return bool(looked_at) and all(looked_at)

    def pairs(self) -> list[Pair]:
        """Every generated image with its nearest training image, the most suspicious first."""
        names = [name for name in self.detector.distances if name in self.sample.neighbors]
        if not names or self.sample.reference.judge_size < 2:
            return []
        found = torch.stack([self.sample.neighbors[name].distances[:, 0] for name in names], dim=1)
        null = torch.stack([self.sample.reference.null_distances(name) for name in names], dim=1)
        scores, limit = copy_scores(found, null), copy_threshold(null, self.detector.rate).value
        best = scores.min(1)
        return [
            Pair(
                generated=row,
                train=int(self.sample.neighbors[names[place]].indices[row, 0]),
                distance=names[place],
                value=float(found[row, place]),
                score=float(best.values[row]),
                flagged=bool(best.values[row] < limit),
            )
            for row, place in sorted(
                enumerate(best.indices.tolist()), key=lambda item: (float(best.values[item[0]]), item[0])
            )
        ]


def summarize(settings: AuditSettings, thresholds: Thresholds, outcome: Outcome) -> dict[str, Any]:
    """What ``result.json`` holds: hashes for images, and every number finite or null."""
    real, answers, pairs = outcome.real, outcome.answers, outcome.pairs()
    sets = {
        "generated": (settings.generated, len(answers.images)),
        "train": (settings.train, len(real.train)),
        "heldout": (settings.heldout, len(real.heldout)),
    }
    return {
        "schema": SCHEMA,
        "job": "audit",
        "status": "done",
        "task": {
            "id": outcome.id,
            "env": None,
            "backbone": None if outcome.model_sha256 is None else Path(settings.generated).name,
            "backbone_sha256": outcome.model_sha256,
            "method": None,
            "groups": [],
        },
        "data": {
            "train": len(real.train),
            "heldout": len(real.heldout),
            "generated": len(answers.images),
            "distinct_train": outcome.sample.reference.distinct,
            "left_out_of_heldout": real.shared,
            "sources": {name: source for name, (source, _) in sets.items()},
            "sha256": {name: set_hash(outcome.hashes[name]) for name in sets},
        },
        "verdict": {
            "passed": outcome.passed,
            "words": _verdict_words(outcome),
            "policy": {"path": str(thresholds.path), "sha256": thresholds.sha256},
            "checks": [
                asdict(check)
                | {
                    "value": measured.value if (measured := outcome.measurements.get(check.metric)) else None,
                    "null": measured.null if measured else None,
                }
                for check in outcome.checks
            ],
        },
        "metrics": {name: measured.to_json() for name, measured in outcome.measurements.items()},
        "not_measured": {name: m.note for name, m in outcome.measurements.items() if m.value is None},
        "copied": _copied(outcome, pairs),
        "closest": [
            asdict(pair)
            | {
                "generated": outcome.hashes["generated"][pair.generated],
                "train": outcome.hashes["train"][pair.train],
            }
            for pair in pairs[:PAIRS]
        ],
        "inversions": [
            {
                "train": outcome.hashes["train"][real.train.ids.index(name)],
                "found": result.success,
                "value": result.value if result.success else None,
                "steps": result.steps,
            }
            for name, result in answers.inversions.items()
        ],
        "notes": list(answers.notes),
        "selected": None,
        "axes": None,
        "anchors": None,
        "evaluations": None,
        "seed": settings.seed,
        "seconds": outcome.seconds,
        "versions": versions(),
        "git": git_state(),
        "hardware": hardware(),
    }


def _copied(outcome: Outcome, pairs: Sequence[Pair]) -> dict[str, int | None]:
    """How many generated images are copies, of how many training images, of how many patients."""
    flagged = [pair for pair in pairs if pair.flagged]
    rows = {pair.train for pair in flagged}
    groups = outcome.real.train.groups
    return {
        "generated": len(flagged),
        "train": len(rows),
        "patients": len({groups[row] for row in rows}) if all(groups) else None,
        "most_often": max(Counter(pair.train for pair in flagged).values(), default=0),
    }


def _verdict_words(outcome: Outcome) -> str:
    counts = Counter(check.passed for check in outcome.checks)
    words = f"{counts[True]} of {len(outcome.checks)} limits kept"
    if counts[False]:
        words += f", {counts[False]} broken"
    if counts[None]:
        words += f", {counts[None]} not looked at"
    return words
