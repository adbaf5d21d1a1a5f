"""Published methods against memorization by name, and what several of them do together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from envs.backbones.base import Backbone
from envs.batches import TrainingSet, encode
from envs.datasets.base import ImageSet
from envs.methods import Attachment
from envs.mitigations.agc import AntiGradientControl
from envs.mitigations.augment import Augmentation
from envs.mitigations.base import Mitigation, Situation, Stage, Treatment, combined
from envs.mitigations.caption_noise import CaptionNoise
from envs.mitigations.deduplicate import Deduplication
from envs.mitigations.dp_sgd import DifferentiallyPrivateSGD
from envs.mitigations.dropout import Dropout
from envs.mitigations.early_stop import EarlyStopping
from envs.mitigations.ema import MovingAverage
from envs.mitigations.guidance import AntiMemorizationGuidance
from envs.mitigations.iet import IterativeEnsembleTraining
from envs.mitigations.prune_subspace import SubspacePruning
from envs.mitigations.threshold import NoiseThreshold
from envs.mitigations.threshold_sampling import ThresholdSampling
from envs.task import InnerBudget
from rewards.errors import InputError

MITIGATIONS: dict[str, type[Mitigation]] = {
    each.name: each
    for each in (
        Deduplication,
        Augmentation,
        CaptionNoise,
        NoiseThreshold,
        AntiGradientControl,
        IterativeEnsembleTraining,
        Dropout,
        DifferentiallyPrivateSGD,
        MovingAverage,
        EarlyStopping,
        SubspacePruning,
        ThresholdSampling,
        AntiMemorizationGuidance,
    )
}
"""Every mitigation by name, in the order in which they act."""

__all__ = [
    "MITIGATIONS",
    "Mitigation",
    "Regimen",
    "Stage",
    "Treatment",
    "find_mitigations",
    "prepare_regimen",
    "prepared_images",
    "toggle_name",
]


@dataclass(frozen=True)
class Regimen:
    """What every fine-tune of a task is given.

    Attributes:
        training_set: The images to train on, encoded.
        treatment: What is done to training, weights and sampling.
    """

    training_set: TrainingSet
    treatment: Treatment


def toggle_name(mitigation: str) -> str:
    """The name of the toggle that leaves a mitigation out."""
    return f"without {mitigation}"


def find_mitigations(chosen: Mapping[str, Mapping[str, Any] | None]) -> tuple[Mitigation, ...]:
    """The mitigations of these names with these settings, in the order in which they act.

    Args:
        chosen: By name in `MITIGATIONS`; settings that are missing have their defaults, None has all of them.

    Raises:
        InputError: If there is no such mitigation or setting, a setting's value is wrong, or two cannot go together.
    """
    found = []
    for name, settings in chosen.items():
        if name not in MITIGATIONS:
            raise InputError(f"mitigation={name} is none", f"choose among none, {', '.join(sorted(MITIGATIONS))}")
        kind, given = MITIGATIONS[name], dict(settings or {})
        known = [field.name for field in fields(kind)]
        if unknown := sorted(set(given) - set(known)):
            remedy = f"its settings are {', '.join(known)}" if known else "it has none"
            raise InputError(f"mitigation={name} has no setting {', '.join(unknown)}", remedy)
        found.append(kind(**given))
    for each in found:
        for other in found:
            if other.name in each.excludes:
                raise InputError(
                    f"mitigation=[{each.name},{other.name}]: {each.excludes[other.name]}", "choose one of the two"
                )
    order = list(MITIGATIONS)
    return tuple(sorted(found, key=lambda each: (each.stage, order.index(each.name))))


def prepared_images(
    mitigations: Sequence[Mitigation], backbone: Backbone, images: ImageSet, method: str, seed: int
) -> tuple[ImageSet, dict[str, float]]:
    """What is trained on, and what mitigations of the data report of it; each checks what the ones before leave it.

    Args:
        mitigations: In the order in which they act.
        backbone: What is fine-tuned.
        images: That are private.
        method: Of adaptation.
        seed: Of the task.

    Raises:
        InputError: If one cannot act here.
    """
    figures = dict[str, float]()
    for each in mitigations:
        each.check(backbone, images, method)
        before, images = images, each.prepared(images, seed)
        figures |= each.compared(before, images)
    return images, figures


def prepare_regimen(
    mitigations: Sequence[Mitigation],
    backbone: Backbone,
    attachment: Attachment,
    method: str,
    images: ImageSet,
    heldout: ImageSet,
    budget: InnerBudget,
    seed: int,
) -> Regimen:
    """Lets each look at what it needs, in their order.

    Args:
        mitigations: In the order in which they act.
        backbone: With its denoiser in the base state.
        attachment: Of the method.
        method: Its name.
        images: That are private.
        heldout: Of other patients.
        budget: Of the fine-tunes.
        seed: Of the task.

    Raises:
        InputError: If one cannot act here.
    """
    images, figures = prepared_images(mitigations, backbone, images, method, seed)
    data = encode(backbone, images)
    if not mitigations:
        return Regimen(data, Treatment())
    situation = Situation(backbone, attachment, method, images, data, heldout, encode(backbone, heldout), budget, seed)
    treatments = [each.treatment(situation) for each in mitigations]
    return Regimen(data, combined([Treatment(figures=figures), *treatments]))
