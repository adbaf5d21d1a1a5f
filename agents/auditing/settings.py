"""Everything ``python -m agents.audit`` is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, FiniteFloat

from agents.ranges import Count, Weight
from agents.settings import ReportSettings
from rewards.inversion import InversionSettings


@dataclass(frozen=True)
class SamplingSettings:
    """How images are drawn from a pipeline.

    Attributes:
        images: How many.
        steps: Of the pipeline's own scheduler.
        guidance_scale: Classifier-free guidance; 1 is none.
        per_prompt: Images that share a caption, at least, if there are captions enough to make them differ.
    """

    images: Count
    steps: Count
    guidance_scale: Annotated[FiniteFloat, Field(ge=1)]
    per_prompt: Count


@dataclass(frozen=True)
class NamedImages:
    """Which images are inverted.

    Attributes:
        images: How many training images, and as many held-out ones; 0 for none.
        named: Ids (file names, or the column ``id``) of training images to invert; the first ``images`` if empty.
        rate: Of held-out images that would count as a training image: what decides when an image was reproduced.
        search: Constants of the search.
    """

    images: Annotated[int, Field(ge=0)]
    named: list[str]
    rate: Annotated[FiniteFloat, Field(gt=0, lt=1)]
    search: InversionSettings


@dataclass(frozen=True)
class AuditSettings:
    """What is audited, and how.

    Attributes:
        generated: A folder of images, an ``.npz`` file, or a diffusers pipeline's folder, which is sampled.
        train: What the model was trained on; folder or ``.npz`` file.
        heldout: Images of other patients from the same source; folder or ``.npz`` file.
        base: The pipeline before fine-tuning, if ``generated`` is one: membership is then judged by what changed.
        policy: A file of thresholds; None for the one that ships.
        size: Height and width to crop and resize all images to; None for their own.
        metrics: What is measured.
        settings: Of a metric, by name.
        duplicate_radius: Training images nearer than this count as one; None for the default.
        cache: A folder for embeddings, which are as private as the images; None for none.
        sampling: Of a pipeline.
        loss_draws: Size of the fixed (t, noise) grid at which denoising losses are compared.
        inversion: Of named images, of a pipeline.
        report: What is shown.
        seed: Of all that is drawn.
        run_dir: The parent of the run's folder.
    """

    generated: str
    train: str
    heldout: str
    base: str | None
    policy: str | None
    size: Count | None
    metrics: list[str]
    settings: dict[str, dict[str, Any]]
    duplicate_radius: Weight | None
    cache: str | None
    sampling: SamplingSettings
    loss_draws: Count
    inversion: NamedImages
    report: ReportSettings
    seed: Annotated[int, Field(ge=0)]
    run_dir: str
