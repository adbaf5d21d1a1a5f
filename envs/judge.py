"""Generates from a denoiser as it stands and measures what it gives away and how good its images are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.backbones.base import Backbone
from envs.batches import TrainingSet, encode
from envs.datasets.base import ImageSet
from envs.evidence import caption_magnitudes, inverted
from envs.generate import Steering, generate
from envs.learner import DivergedError
from envs.losses import denoising_losses
from envs.probes import reproduction_similarity
from envs.task import InnerBudget
from rewards.evidence import DenoisingLosses, Evidence, Inversions, NoiseMagnitudes
from rewards.inversion import InversionSettings, Similarity
from rewards.measurement import Measurement
from rewards.reference import Reference
from rewards.suite import Suite


class Basis(NamedTuple):
    """What all answers of a judge share, and those of others with the same arguments at the same base state.

    Attributes:
        judged_set: The judged images, encoded.
        reference: Embeddings of the real images, and their nulls.
        base_losses: Of the base model on the training images and on the judged ones.
    """

    judged_set: TrainingSet
    reference: Reference
    base_losses: tuple[Tensor, Tensor]


class Judge:
    """Compares a fine-tuned model with its base, its training images, and real images of other patients.

    What all its answers share is computed once, unless it is known.

    Args:
        backbone: With the denoiser in its base state.
        train: What is trained on.
        training_set: The same, encoded.
        judged: The real images that quality and nulls are measured on.
        budget: How many images are generated and how, and the grid of losses.
        metrics: Names of what is measured, in order.
        seed: Of sampling and of the losses' noises.
        basis: Of such a judge, if one is known.

    Attributes:
        suite: What measures.
        basis: See `Basis`.
    """

    def __init__(
        self,
        backbone: Backbone,
        train: ImageSet,
        training_set: TrainingSet,
        judged: ImageSet,
        budget: InnerBudget,
        metrics: Sequence[str],
        seed: int,
        basis: Basis | None = None,
    ) -> None:
        self.suite = Suite(metrics)
        self._backbone, self._budget, self._seed = backbone, budget, seed
        self._train, self._training_set = train, training_set
        self._judged = judged
        self._similarity: Similarity | None = None
        rows = [i % len(train) for i in range(budget.images)]
        self._prompts = [train.captions[row] for row in rows]
        self._generated_states = training_set.states[rows]
        self.basis = self._basis() if basis is None else basis

    @property
    def nulls(self) -> Mapping[str, float | None]:
        """Each metric's value with real images in place of generated ones; None where there is none."""
        return self.basis.reference.nulls

    def generate(self, steerings: Sequence[Steering] = ()) -> NDArray[np.uint8]:
        """``budget.images`` images from the training captions in turn, ``(n, h, w, 3)``, by a sampler thus steered."""
        return generate(
            self._backbone,
            self._generated_states,
            self._training_set.empty_state,
            steps=self._budget.sampling_steps,
            guidance_scale=self._budget.guidance_scale,
            seed=self._seed,
            steerings=steerings,
        )

    def evidence(self) -> Evidence:
        """What the metrics look at besides images.

        Raises:
            DivergedError: If the model's losses are not finite.
        """
        needs, conditional = self.suite.needs, self._backbone.conditional
        return Evidence(
            losses=self._changed_losses() if "losses" in needs else None,
            prompts=self._prompts if conditional else None,
            noise_magnitudes=self._noise_magnitudes() if conditional and "noise_magnitudes" in needs else None,
            inversions=self._inversions() if "inversions" in needs else None,
        )

    def measure(self, images: NDArray[np.uint8] | None, evidence: Evidence) -> dict[str, Measurement]:
        """Every metric by name.

        Args:
            images: What `generate` gave; None if nothing was generated.
            evidence: What `evidence` gave.
        """
        return self.suite.measure(self.basis.reference, None if images is None else _as_tensor(images), evidence)

    def _changed_losses(self) -> DenoisingLosses:
        train, judged = self._losses(self.basis.judged_set)
        if not (train.isfinite().all() and judged.isfinite().all()):
            raise DivergedError("the fine-tuned model's losses are not finite")  # as the last step may leave it
        base_train, base_judged = self.basis.base_losses
        return DenoisingLosses(train=train, heldout=judged, base_train=base_train, base_heldout=base_judged)

    def _noise_magnitudes(self) -> NoiseMagnitudes:
        return caption_magnitudes(
            self._backbone,
            self._train,
            self._judged,
            steps=self._budget.sampling_steps,
            guidance_scale=self._budget.guidance_scale,
            seed=self._seed,
        )

    def _inversions(self) -> Inversions:
        train, judged, most = self._train, self._judged, self._budget.inversions
        if self._similarity is None:
            self._similarity = reproduction_similarity(self._backbone, train.images, judged.images)
        found, _ = inverted(
            self._backbone,
            train.take(range(min(most, len(train)))),
            judged.take(range(min(most, len(judged)))),
            self._similarity,
            InversionSettings(sampling_steps=self._budget.sampling_steps, seed=self._seed),
        )
        return found

    def _basis(self) -> Basis:
        judged_set = encode(self._backbone, self._judged)
        reference = self.suite.reference(_as_tensor(self._train.images), _as_tensor(self._judged.images))
        return Basis(judged_set, reference, self._losses(judged_set))

    def _losses(self, judged_set: TrainingSet) -> tuple[Tensor, Tensor]:
        """Of the training images and of the judged ones, at the model's present state."""
        both = [
            denoising_losses(
                self._backbone, images.latents, images.states, draws=self._budget.loss_draws, seed=self._seed
            )
            for images in (self._training_set, judged_set)
        ]
        return both[0], both[1]


def _as_tensor(images: NDArray[np.uint8]) -> Tensor:
    """``(n, h, w, 3)`` to ``(n, 3, h, w)``, still uint8."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
