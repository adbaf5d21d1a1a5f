"""The real thing: fine-tune with a schedule of masks, generate, measure."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from envs.backbones.latent import LatentBackbone, load_latent_backbone
from envs.datasets.base import ImageSet, SplitDataset
from envs.evaluators.base import Evaluation
from envs.evidence import caption_magnitudes, inverted
from envs.finetune import DivergedError, TrainingSet, finetune, one_pass
from envs.generate import generate
from envs.groups import find_groups
from envs.losses import denoising_losses
from envs.methods import find_method
from envs.probes import reproduction_similarity
from envs.task import Schedule, SelectionTask
from rewards.errors import InputError
from rewards.evidence import DenoisingLosses, Evidence, Inversions, NoiseMagnitudes
from rewards.inversion import InversionSettings, Similarity
from rewards.measurement import Measurement
from rewards.reference import Reference
from rewards.suite import Suite


@dataclass(frozen=True)
class FineTuneFactory:
    """Builds a `FineTuneEvaluator` in a worker process; picklable.

    Attributes:
        task: What is evaluated.
        dataset: Its images.
        backbone_path: The pipeline folder.
        devices: One a worker, reused in turn: ``("cuda:0", "cuda:1")`` or ``("cpu",)``.
        threads: Of torch in each worker. Another number rounds sums differently, so the task's options name it.
    """

    task: SelectionTask
    dataset: SplitDataset
    backbone_path: Path
    devices: tuple[str, ...] = ("cpu",)
    threads: int = 1

    def __call__(self, worker: int) -> FineTuneEvaluator:
        """Loads the backbone onto the worker's device."""
        torch.set_num_threads(self.threads)
        # Without it cuDNN picks its algorithms by timing them, and numbers differ from run to run.
        torch.backends.cudnn.deterministic = True
        device = torch.device(self.devices[worker % len(self.devices)])
        backbone = load_latent_backbone(self.backbone_path, name=self.task.backbone, device=device)
        return FineTuneEvaluator(self.task, self.dataset, backbone)


class FineTuneEvaluator:
    """Evaluates schedules one after another on one backbone, which is loaded once and restored after each.

    What all evaluations of a task share is computed here, once: latents, text states, embeddings of the real images,
    their nulls, and the base model's losses.

    Args:
        task: What is evaluated; its ``judge`` names the real images that quality and nulls are measured on.
        dataset: The images.
        backbone: With its denoiser in its pretrained state.

    Raises:
        InputError: If the task asks for more sampling steps than the backbone has timesteps, or names an unknown group
            scheme, method or metric.

    Attributes:
        seconds: Of the last evaluation's parts: ``finetune``, ``generate``, ``losses``, ``measure``.
    """

    def __init__(self, task: SelectionTask, dataset: SplitDataset, backbone: LatentBackbone) -> None:
        if task.inner.sampling_steps > backbone.timesteps:
            raise InputError(
                f"inner.sampling_steps={task.inner.sampling_steps}", f"the backbone has {backbone.timesteps} at most"
            )
        self.task, self.backbone = task, backbone
        self.seconds: dict[str, float] = {}
        groups = find_groups(backbone.denoiser, task.scheme)
        # Of the base model: a share means the same for methods that add parameters as for those that add none.
        self.total_parameters = sum(p.numel() for p in backbone.denoiser.parameters())
        self._empty = backbone.encode_captions([""])
        self.training_set = self._prepare(dataset.train)
        self.attachment = find_method(task.method, task.method_settings)(
            backbone.denoiser,
            groups,
            calibration=lambda: one_pass(backbone, self.training_set, task.inner.batch_size, task.seed),
            seed=task.seed,
        )
        # Not state_dict(): it leaves out the buffers that are not saved.
        state = itertools.chain(backbone.denoiser.named_parameters(), backbone.denoiser.named_buffers())
        self._base = {name: tensor.detach().clone() for name, tensor in state}

        judge = dataset.test if task.judge == "test" else dataset.heldout
        self._judge = self._prepare(judge)
        self._images, self._judged = dataset, judge
        self._similarity: Similarity | None = None
        rows = [i % len(dataset.train) for i in range(task.inner.images)]
        self._prompts = [dataset.train.captions[row] for row in rows]
        self._generated_states = self.training_set.states[rows]
        self.suite = Suite(task.metrics)
        self._reference: Reference = self.suite.reference(_as_tensor(dataset.train.images), _as_tensor(judge.images))
        self._base_losses = self._losses()
        self._restore({})  # buffers that a forward pass moves

    def evaluate(self, schedule: Schedule) -> Evaluation:
        """Fine-tunes, generates, measures, restores.

        Raises:
            DivergedError: If a loss is not finite.
            RuntimeError: From torch, for example out of memory. The backbone is restored in every case.
        """
        started = time.perf_counter()
        selected: dict[str, nn.Parameter] = {}
        for mask in schedule.phases:
            selected |= self.attachment.selected(mask)
        try:
            steps, images = self._learn_and_generate(schedule)
            measurements = self._measure(images)
        finally:
            self._restore(selected)
        return Evaluation(
            schedule=schedule,
            metrics=measurements,
            trainable_parameters=sum(parameter.numel() for parameter in selected.values()),
            total_parameters=self.total_parameters,
            steps=steps,
            seconds=time.perf_counter() - started,
        )

    def images(self, schedule: Schedule) -> NDArray[np.uint8]:
        """What the model generates after this schedule, ``(n, h, w, 3)``: the images that `evaluate` measures."""
        try:
            return self._learn_and_generate(schedule)[1]
        finally:
            self._restore(self.attachment.selected((True,) * len(self.attachment.parameters)))

    def _prepare(self, images: ImageSet) -> TrainingSet:
        states = self.backbone.encode_captions(images.captions)
        return TrainingSet(self.backbone.encode_images(images.images), states, self._empty)

    def _learn_and_generate(self, schedule: Schedule) -> tuple[int, NDArray[np.uint8]]:
        with self._clock("finetune"):
            steps = finetune(
                self.backbone, self.attachment, schedule, self.training_set, self.task.inner, self.task.seed
            )
        with self._clock("generate"):
            images = generate(
                self.backbone,
                self._generated_states,
                self._empty,
                steps=self.task.inner.sampling_steps,
                guidance_scale=self.task.inner.guidance_scale,
                seed=self.task.seed,
            )
        return steps, images

    def _measure(self, images: NDArray[np.uint8]) -> Mapping[str, Measurement]:
        with self._clock("losses"):
            evidence = Evidence(
                losses=self._changed_losses() if "losses" in self.suite.needs else None,
                prompts=self._prompts,
                noise_magnitudes=self._noise_magnitudes() if "noise_magnitudes" in self.suite.needs else None,
                inversions=self._inversions() if "inversions" in self.suite.needs else None,
            )
        with self._clock("measure"):
            return self.suite.measure(self._reference, _as_tensor(images), evidence)

    def _changed_losses(self) -> DenoisingLosses:
        train, judge = self._losses()
        if not (train.isfinite().all() and judge.isfinite().all()):
            raise DivergedError("the fine-tuned model's losses are not finite")  # as the last step may leave it
        base_train, base_judge = self._base_losses
        return DenoisingLosses(train=train, heldout=judge, base_train=base_train, base_heldout=base_judge)

    def _noise_magnitudes(self) -> NoiseMagnitudes:
        inner = self.task.inner
        return caption_magnitudes(
            self.backbone,
            self._images.train,
            self._judged,
            steps=inner.sampling_steps,
            guidance_scale=inner.guidance_scale,
            seed=self.task.seed,
        )

    def _inversions(self) -> Inversions:
        inner, train, judged = self.task.inner, self._images.train, self._judged
        if self._similarity is None:
            self._similarity = reproduction_similarity(self.backbone, train.images, judged.images)
        settings = InversionSettings(sampling_steps=inner.sampling_steps, seed=self.task.seed)
        found, _ = inverted(
            self.backbone,
            train.take(range(min(inner.inversions, len(train)))),
            judged.take(range(min(inner.inversions, len(judged)))),
            self._similarity,
            settings,
        )
        return found

    def _losses(self) -> tuple[Tensor, Tensor]:
        """Of the training images and of the judge's, at the model's present state."""
        both = [
            denoising_losses(
                self.backbone, images.latents, images.states, draws=self.task.inner.loss_draws, seed=self.task.seed
            )
            for images in (self.training_set, self._judge)
        ]
        return both[0], both[1]

    @torch.no_grad()
    def _restore(self, selected: Mapping[str, Tensor]) -> None:
        """Puts back what a fine-tune may have moved: the selected parameters, and every buffer."""
        for name, parameter in selected.items():
            parameter.copy_(self._base[name])
        for name, buffer in self.backbone.denoiser.named_buffers():
            buffer.copy_(self._base[name])

    @contextmanager
    def _clock(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[part] = time.perf_counter() - started


def _as_tensor(images: NDArray[np.uint8]) -> Tensor:
    """``(n, h, w, 3)`` to ``(n, 3, h, w)``, still uint8."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
