"""What a pipeline is asked in an audit: images, losses, noise magnitudes, inversions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from agents.auditing.images import RealImages
from agents.auditing.settings import AuditSettings
from envs.backbones import EMBEDDED
from envs.backbones.base import Backbone, check_guidance
from envs.backbones.load import load_backbone
from envs.datasets.base import ImageSet
from envs.evidence import caption_magnitudes, inverted
from envs.generate import generate
from envs.losses import denoising_losses
from envs.probes import reproduction_similarity
from rewards.errors import InputError
from rewards.evidence import DenoisingLosses, Evidence, Inversions
from rewards.inversion import InversionResult
from rewards.metric import Need

Show = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Answers:
    """What the model showed.

    Attributes:
        images: uint8 RGB ``(n, h, w, 3)``: generated.
        evidence: What else the metrics look at.
        inversions: By id of the training image tried; empty if none was.
        notes: What has to be known to read the numbers.
    """

    images: NDArray[np.uint8]
    evidence: Evidence
    inversions: dict[str, InversionResult]
    notes: tuple[str, ...]


def is_pipeline(path: str) -> bool:
    """True of a folder that diffusers wrote."""
    return (Path(path) / "model_index.json").is_file()


def load_pipeline(path: str) -> Backbone:
    """The pipeline on the first GPU, or the CPU; ``embedded`` is the one that ships.

    Raises:
        InputError: See `load_backbone`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.deterministic = True
    return load_backbone(EMBEDDED if path == "embedded" else Path(path), name=path, device=device)


def named_images(settings: AuditSettings, real: RealImages) -> tuple[ImageSet, ImageSet]:
    """Training images to invert, and held-out ones.

    Raises:
        InputError: If an id is not among the training images'.
    """
    ids, wanted = real.train.ids, settings.inversion.named
    if unknown := sorted(set(wanted) - set(ids)):
        raise InputError(f"inversion.named has {unknown[0]!r}", f"name training images, such as {ids[0]!r}")
    train = [ids.index(name) for name in wanted] or range(min(settings.inversion.images, len(ids)))
    return real.train.take(list(train)), real.heldout.take(range(min(len(train), len(real.heldout))))


def ask(settings: AuditSettings, model: Backbone, real: RealImages, needs: frozenset[Need], show: Show) -> Answers:
    """Everything that the metrics need of the model.

    Args:
        settings: Of the audit.
        model: The pipeline.
        real: Images of the model's own size.
        needs: Of the metrics.
        show: Told about progress.

    Raises:
        InputError: If the pipeline before fine-tuning cannot be loaded or is of another shape, or one without captions
            is to be guided by them.
    """
    sampling, seed = settings.sampling, settings.seed
    if sampling.steps > model.timesteps:
        raise InputError(f"sampling.steps={sampling.steps}", f"the pipeline has {model.timesteps} at most")
    check_guidance(model, sampling.guidance_scale, "sampling.guidance_scale")
    named = named_images(settings, real)
    prompts, note = prompts_of(real.train.captions, sampling.images, sampling.per_prompt)
    notes = [note] if note and model.conditional else []
    show("sampling", 0, 1)
    states, empty = model.encode_captions(prompts), model.encode_captions([""])
    images = generate(model, states, empty, steps=sampling.steps, guidance_scale=sampling.guidance_scale, seed=seed)
    evidence = Evidence(prompts=prompts if model.conditional else None)
    if "losses" in needs:
        show("denoising losses", 0, 1)
        evidence = replace(evidence, losses=_losses(settings, model, real))
        if settings.base is None:
            notes.append(
                "membership is judged by plain denoising losses: without base=<the pipeline before fine-tuning> images "
                "that are easy for any model look like members"
            )
    if "noise_magnitudes" in needs and model.conditional:
        show("noise magnitudes", 0, 1)
        magnitudes = caption_magnitudes(
            model,
            real.train,
            real.heldout,
            steps=sampling.steps,
            guidance_scale=sampling.guidance_scale,
            seed=seed,
        )
        evidence = replace(evidence, noise_magnitudes=magnitudes)
    found: list[InversionResult] = []
    if "inversions" in needs and len(named[0]):
        similarity = reproduction_similarity(model, real.train.images, real.heldout.images, settings.inversion.rate)
        search = replace(settings.inversion.search, seed=seed)
        inversions: Inversions
        inversions, (found, _) = inverted(
            model, *named, similarity, search, lambda done, total: show("inversions", done, total)
        )
        evidence = replace(evidence, inversions=inversions)
    return Answers(images, evidence, dict(zip(named[0].ids, found, strict=False)), tuple(notes))


def prompts_of(captions: Sequence[str], images: int, per_prompt: int) -> tuple[list[str], str]:
    """A prompt for each image to generate, and what has to be known about the choice.

    The training images' captions in turn, as often as they occur; but if so many differ that few images would share
    one, only so many captions that each gets ``per_prompt`` images: extraction looks for what one prompt repeats.
    """
    distinct = list(dict.fromkeys(captions))
    if len(distinct) * per_prompt <= images:
        return [captions[i % len(captions)] for i in range(images)], ""
    chosen = distinct[: max(1, images // per_prompt)]
    note = f"images were generated from {len(chosen)} of {len(distinct)} captions, {images // len(chosen)} each or more"
    return [chosen[i % len(chosen)] for i in range(images)], note


def _losses(settings: AuditSettings, model: Backbone, real: RealImages) -> DenoisingLosses:
    def of(asked: Backbone, images: ImageSet) -> torch.Tensor:
        latents, states = asked.encode_images(images.images), asked.encode_captions(images.captions)
        return denoising_losses(asked, latents, states, draws=settings.loss_draws, seed=settings.seed)

    after = of(model, real.train), of(model, real.heldout)
    if settings.base is None:
        before = torch.zeros_like(after[0]), torch.zeros_like(after[1])
    else:
        base = load_pipeline(settings.base)
        if base.latent_shape != model.latent_shape:
            raise InputError(
                f"base={settings.base} has latents of {base.latent_shape}, generated of {model.latent_shape}",
                "give the pipeline that was fine-tuned",
            )
        before = of(base, real.train), of(base, real.heldout)
    if not all(losses.isfinite().all() for losses in after):
        raise InputError(f"generated={settings.generated}: its denoising losses are not finite", "mend the model")
    return DenoisingLosses(train=after[0], heldout=after[1], base_train=before[0], base_heldout=before[1])
