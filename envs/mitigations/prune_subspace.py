"""Pruning of the weights that carry what was memorized."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from envs.backbones.base import Backbone, rows_at_once
from envs.batches import TrainingSet
from envs.datasets.base import ImageSet
from envs.generate import starting_noise
from envs.losses import denoising_losses
from envs.mitigations.base import Mitigation, Situation, Stage, Treatment, within
from envs.mitigations.effective import KINDS, effective_weight, layers_of, zeroed
from envs.mitigations.wanda import Power, PowerMeter, subspace
from rewards.calibration import threshold
from rewards.errors import InputError

_CONTRASTS = ("auto", "captions", "images")
_FLAGGED = ("auto", "all")


@dataclass(frozen=True)
class SubspacePruning(Mitigation):
    """The trained model without the weights that matter more for memorized images than for others.

    Chavhan et al., arXiv 2406.18566. At each of the first timesteps of sampling, an entry of a layer's weight is a
    candidate if its Wanda score is among the highest of its row on a memorized set, and higher than on a base set; what
    is a candidate at any of these timesteps becomes zero. See `envs.mitigations.wanda`.

    What is compared: ``captions`` samples with the memorized images' captions and, from the same noise, with the empty
    caption, as published (without guidance). ``images`` needs no text: memorized images against held-out ones, both
    with noise at these timesteps. Which training images are memorized is measured on the trained model: those whose
    denoising loss fell by more than that of held-out images, at a stated false-positive rate.

    The published score adds up over rows; here it is a mean, because the two sets may differ in size. With the adapters
    of a method, the weight that they make together with the base weight is what is pruned.

    Pruning often hides instead of erasing (arXiv 2507.16880): look at the inversion metric too.

    Attributes:
        ratio: In [0, 1]: of each row of a weight, the share that may be pruned at one timestep.
        timesteps: How many of the sampler's first; all, if it has fewer.
        layers: One of `KINDS`. The paper prunes ``feed_forward``.
        contrast: ``captions``, ``images``, or ``auto``: captions if the model takes any.
        flagged: ``auto``, ``all``, or ids of training images that are taken to be memorized.
        alpha: In (0, 1): with ``auto``, the share of held-out images that would be flagged.
    """

    ratio: float = 0.01
    timesteps: int = 10
    layers: str = "feed_forward"
    contrast: str = "auto"
    flagged: str | Sequence[str] = "auto"
    alpha: float = 0.05
    name: ClassVar[str] = "prune_subspace"
    stage: ClassVar[Stage] = Stage.WEIGHTS
    source: ClassVar[str] = "Chavhan et al., arXiv 2406.18566"

    def __post_init__(self) -> None:
        if not within(self.ratio, 0.0, 1.0):
            raise self.refused("ratio", "set it from 0 to 1: 0.01 is the paper's")
        if isinstance(self.timesteps, bool) or not isinstance(self.timesteps, int) or self.timesteps < 1:
            raise self.refused("timesteps", "set it to a whole number of 1 or more")
        if self.layers not in KINDS:
            raise self.refused("layers", f"choose among {', '.join(KINDS)}")
        if self.contrast not in _CONTRASTS:
            raise self.refused("contrast", f"choose among {', '.join(_CONTRASTS)}")
        if isinstance(self.flagged, str):
            if self.flagged not in _FLAGGED:
                raise self.refused("flagged", f"set it to {', '.join(_FLAGGED)}, or a list of ids of training images")
        elif not isinstance(self.flagged, Sequence) or not len(self.flagged):
            raise self.refused("flagged", "list one id of a training image or more, or set it to auto or all")
        if not within(self.alpha, 1e-9, 1 - 1e-9):
            raise self.refused("alpha", "set it above 0 and below 1")

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Mitigation.settings`."""
        flagged = self.flagged if isinstance(self.flagged, str) else [str(each) for each in self.flagged]
        return {**super().settings, "flagged": flagged}

    def check(self, backbone: Backbone, images: ImageSet, method: str) -> None:
        """See `Mitigation.check`."""
        super().check(backbone, images, method)
        if self.contrast == "captions" and not backbone.conditional:
            raise self.refused("contrast", f"set it to images: {backbone.name} takes no captions")
        if not layers_of(backbone.denoiser, self.layers):
            kind = type(backbone.denoiser).__name__
            raise self.refused("layers", f"set it to all: a {kind} like this has none of them")
        if not isinstance(self.flagged, str):
            known = set(images.ids)
            if unknown := [str(each) for each in self.flagged if str(each) not in known]:
                raise InputError(
                    f"mitigation.prune_subspace.flagged: {unknown[0]} is no id of a training image",
                    f"name images that are trained on, such as {images.ids[0]}",
                )

    def treatment(self, situation: Situation) -> Treatment:
        """See `Mitigation.treatment`; it measures the base model's losses if it will compare with them."""
        base = _losses(situation) if self.flagged == "auto" else None

        @contextmanager
        def edit() -> Iterator[Mapping[str, float]]:
            rows = self._rows(situation, base)
            layers = layers_of(situation.backbone.denoiser, self.layers)
            masks = self.masks(situation, layers, rows) if len(rows) else {}
            total = sum(effective_weight(layer).numel() for layer in layers.values())
            pruned = sum(int(mask.sum()) for mask in masks.values())
            with zeroed(layers, masks):
                yield {"prune_subspace.flagged": float(len(rows)), "prune_subspace.pruned_share": pruned / total}

        return Treatment(edits=(edit,))

    @torch.no_grad()
    def masks(self, situation: Situation, layers: Mapping[str, nn.Module], rows: Tensor) -> dict[str, Tensor]:
        """What to prune of the model as it stands, true where zero, by layer.

        Args:
            situation: Whose images and held-out images are compared.
            layers: To look at.
            rows: Which training images are memorized, ``(m,)``, m > 0.
        """
        backbone, train, heldout = situation.backbone, situation.data, situation.heldout_data
        memorized, steps = taken(train, rows), min(self.timesteps, situation.budget.sampling_steps)
        scheduler = copy.deepcopy(backbone.scheduler)
        scheduler.set_timesteps(situation.budget.sampling_steps, device=backbone.device)
        if self.contrast == "captions" or (self.contrast == "auto" and backbone.conditional):
            base = replace(memorized, states=train.empty_state.expand_as(memorized.states))
            powers = [
                powers_of_captions(backbone, layers, each, scheduler, steps, situation.seed)
                for each in (memorized, base)
            ]
        else:
            powers = [
                powers_of_images(backbone, layers, each, scheduler.timesteps[:steps], situation.seed)
                for each in (memorized, heldout)
            ]
        weights = {name: effective_weight(layer) for name, layer in layers.items()}
        return subspace(weights, powers[0], powers[1], self.ratio)

    def _rows(self, situation: Situation, base: tuple[Tensor, Tensor] | None) -> Tensor:
        """Of the training images that count as memorized by the model as it stands."""
        if base is not None:
            train, heldout = (after - before for after, before in zip(_losses(situation), base, strict=True))
            return torch.nonzero(train < threshold(heldout, self.alpha).value)[:, 0]
        if self.flagged == "all":
            return torch.arange(len(situation.images))
        wanted = {str(each) for each in self.flagged}
        return torch.tensor([row for row, each in enumerate(situation.images.ids) if each in wanted])


def taken(data: TrainingSet, rows: Tensor) -> TrainingSet:
    """Some of the images."""
    rows = rows.to(data.latents.device)
    return replace(data, latents=data.latents[rows], states=data.states[rows])


def powers_of_images(
    backbone: Backbone, layers: Mapping[str, nn.Module], data: TrainingSet, timesteps: Tensor, seed: int
) -> list[Power]:
    """One a timestep, of images with noise, which is that of their place in the set.

    Args:
        backbone: With the denoiser in the state to look at.
        layers: By name.
        data: The images and their captions.
        timesteps: Of the noise schedule, ``(k,)``.
        seed: Of the noise.
    """
    noise, _ = starting_noise(backbone, len(data.latents), seed)
    powers, at_once = [], rows_at_once(data.latents.shape[-1])
    for t in timesteps.tolist():
        meter = PowerMeter(layers)
        with meter.reading():
            for start in range(0, len(data.latents), at_once):
                rows = slice(start, start + at_once)
                latents = data.latents[rows]
                steps = torch.full((len(latents),), round(t), dtype=torch.long, device=latents.device)
                noisy, _ = backbone.noised(latents, noise[rows], steps)
                backbone.predict(noisy, steps, data.states[rows])
        powers.append(meter.power())
    return powers


def powers_of_captions(
    backbone: Backbone, layers: Mapping[str, nn.Module], data: TrainingSet, scheduler: Any, steps: int, seed: int
) -> list[Power]:
    """One for each of a sampler's first steps, of images sampled from their captions.

    Args:
        backbone: With the denoiser in the state to look at.
        layers: By name.
        data: Whose captions are sampled from; of the images only their number counts.
        scheduler: Of diffusers, its timesteps set; it is left as it is.
        steps: How many.
        seed: Of the noise.
    """
    noise, generators = starting_noise(backbone, len(data.states), seed)
    meters = [PowerMeter(layers) for _ in range(steps)]
    at_once = rows_at_once(noise.shape[-1])
    for start in range(0, len(noise), at_once):
        rows, own = slice(start, start + at_once), copy.deepcopy(scheduler)
        takes_noise = "generator" in inspect.signature(own.step).parameters
        drawn = {"generator": generators[rows]} if takes_noise else {}
        x = noise[rows] * own.init_noise_sigma
        for t, meter in zip(own.timesteps, meters, strict=False):
            with meter.reading():
                output = backbone.predict(own.scale_model_input(x, t), t, data.states[rows])
            x = own.step(output, t, x, return_dict=False, **drawn)[0]
    return [meter.power() for meter in meters]


def _losses(situation: Situation) -> tuple[Tensor, Tensor]:
    """Denoising losses of the training images and of the held-out ones, by the model as it stands."""
    found = [
        denoising_losses(
            situation.backbone, data.latents, data.states, draws=situation.budget.loss_draws, seed=situation.seed
        )
        for data in (situation.data, situation.heldout_data)
    ]
    return found[0], found[1]
