"""The real thing: fine-tune with a schedule of masks, generate, measure."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from envs.backbones.base import Backbone, check_guidance
from envs.backbones.execution import Execution
from envs.backbones.load import load_backbone
from envs.backbones.memory import peak_memory, smaller
from envs.batches import encode
from envs.datasets.base import SplitDataset
from envs.evaluators.base import Evaluation
from envs.evaluators.failure import is_out_of_memory
from envs.finetune import finetune, one_pass
from envs.generate import Steering
from envs.groups import find_groups
from envs.judge import Basis, Judge
from envs.methods import find_method
from envs.mitigations import Regimen, Treatment, find_mitigations, prepare_regimen
from envs.task import Schedule, SelectionTask, content_hash
from rewards.errors import InputError
from rewards.measurement import Measurement


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

    def __call__(self, worker: int, basis: Basis | None = None) -> FineTuneEvaluator:
        """Loads the backbone onto the worker's device; ``basis`` is that of a task with the same `basis_key`."""
        torch.set_num_threads(self.threads)
        # Without it cuDNN picks its algorithms by timing them, and numbers differ from run to run.
        torch.backends.cudnn.deterministic = True
        device = torch.device(self.devices[worker % len(self.devices)])
        execution = Execution(**self.task.options.get("backbone", {}))
        backbone = load_backbone(self.backbone_path, name=self.task.backbone, device=device, execution=execution)
        return FineTuneEvaluator(self.task, self.dataset, backbone, basis)


_OF_TRAINING = ("steps", "batch_size", "learning_rate", "warmup", "decay", "weight_decay", "caption_dropout")
"""Of an inner budget, what no judge looks at."""


def basis_key(task: SelectionTask) -> str:
    """The same for tasks that differ in how they train and in mitigations alone: what their judges share is the same.

    Tasks of two methods are kept apart, because a method may compute the base model's outputs in another order.
    """
    identity = task.identity()
    judged = {name: value for name, value in identity["inner"].items() if name not in _OF_TRAINING}
    options = {name: value for name, value in task.options.items() if not name.startswith("mitigation")}
    kept = {name: value for name, value in identity.items() if name != "mitigation_code"}
    return content_hash(kept | {"inner": judged, "options": options})


class _Model(NamedTuple):
    """A trained model.

    Attributes:
        parameters: Numbers that may have moved.
        steps: Optimizer steps taken.
        figures: Of what was done besides plain training.
        steerings: Of its sampler.
    """

    parameters: int
    steps: int
    figures: Mapping[str, float]
    steerings: Sequence[Steering]


class FineTuneEvaluator:
    """Evaluates schedules one after another on one backbone, which is loaded once and restored after each.

    What all evaluations of a task share is computed once, here or by its judge.

    Args:
        task: What is evaluated; its ``judge`` names the real images that quality and nulls are measured on.
        dataset: The images.
        backbone: With its denoiser in its pretrained state.
        basis: Of the judge, if it is known from a task with the same `basis_key`.

    Raises:
        InputError: If the task asks for more sampling steps than the backbone has timesteps or for guidance that it
            cannot give, or names an unknown group scheme, method or metric.

    Attributes:
        training_set: The training images, encoded.
        judge: What measures.
        seconds: Of the last evaluation's parts: ``finetune``, ``generate``, ``losses``, ``measure``.
    """

    def __init__(
        self, task: SelectionTask, dataset: SplitDataset, backbone: Backbone, basis: Basis | None = None
    ) -> None:
        if task.inner.sampling_steps > backbone.timesteps:
            raise InputError(
                f"inner.sampling_steps={task.inner.sampling_steps}", f"the backbone has {backbone.timesteps} at most"
            )
        check_guidance(backbone, task.inner.guidance_scale, "inner.guidance_scale")
        self.task, self.backbone = task, backbone
        self.seconds: dict[str, float] = {}
        self._part = ""
        groups = find_groups(backbone.denoiser, task.scheme)
        # Of the base model: a share means the same for methods that add parameters as for those that add none.
        self.total_parameters = sum(p.numel() for p in backbone.denoiser.parameters())
        self.training_set = encode(backbone, dataset.train)
        self.attachment = find_method(task.method, task.method_settings)(
            backbone.denoiser,
            groups,
            calibration=lambda: one_pass(backbone, self.training_set, task.inner.batch_size, task.seed),
            seed=task.seed,
        )
        self._dataset, self._regimens = dataset, dict[frozenset[str], Regimen]()
        self._untreated = Regimen(self.training_set, Treatment())
        self.regimen(frozenset())  # what cannot act here says so now
        # Not state_dict(): it leaves out the buffers that are not saved.
        state = itertools.chain(backbone.denoiser.named_parameters(), backbone.denoiser.named_buffers())
        self._base = {name: tensor.detach().clone() for name, tensor in state}

        judged = dataset.test if task.judge == "test" else dataset.heldout
        self.judge = Judge(
            backbone, dataset.train, self.training_set, judged, task.inner, task.metrics, task.seed, basis
        )
        self._restore({})  # buffers that a forward pass moves

    def evaluate(self, schedule: Schedule) -> Evaluation:
        """Fine-tunes, generates, measures, restores.

        Raises:
            DivergedError: If a loss is not finite.
            MemoryError: If memory runs out, with the peak and what would need less.
            RuntimeError: From torch. The backbone is restored in every case.
        """
        started = time.perf_counter()
        try:
            with self._trained(schedule) as model:
                measurements = self._measure(self._generate(model))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            peak = peak_memory(self.backbone.device) / 2**30
            remedy = smaller(self.backbone.execution, self.task.inner.batch_size, training=self._part == "finetune")
            raise MemoryError(f"at {peak:.1f} GiB in {self._part}: set {remedy}") from error
        return Evaluation(
            schedule=schedule,
            metrics=measurements,
            trainable_parameters=model.parameters,
            total_parameters=self.total_parameters,
            steps=model.steps,
            seconds=time.perf_counter() - started,
            figures=model.figures,
        )

    def images(self, schedule: Schedule) -> NDArray[np.uint8]:
        """What the model generates after this schedule, ``(n, h, w, 3)``: the images that `evaluate` measures."""
        with self._trained(schedule) as model:
            return self._generate(model)

    def regimen(self, left_out: frozenset[str]) -> Regimen:
        """What fine-tunes are given without these mitigations; asked for the first time, at the base model."""
        if left_out not in self._regimens:
            chosen = {name: own for name, own in self.task.mitigations.items() if name not in left_out}
            self._regimens[left_out] = prepare_regimen(
                find_mitigations(chosen),
                self.backbone,
                self.attachment,
                self.task.method,
                self._dataset.train,
                self._dataset.heldout,
                self.task.inner,
                self.task.seed,
            )
        return self._regimens[left_out]

    @contextmanager
    def _trained(self, schedule: Schedule) -> Iterator[_Model]:
        """Inside, the model is what a fine-tune makes of it."""
        split = [self.task.split(mask) for mask in schedule.phases]
        layers = Schedule(tuple(mask for mask, _ in split))
        # A schedule that trains nothing is the base model, and that stays what it is.
        regimen = self.regimen(split[0][1]) if layers.learns else self._untreated
        selected = {name: p for mask in layers.phases for name, p in self.attachment.selected(mask).items()}
        try:
            with ExitStack() as stack:
                with self._clock("finetune"):
                    trained = finetune(
                        self.backbone,
                        self.attachment,
                        layers,
                        regimen.training_set,
                        self.task.inner,
                        self.task.seed,
                        regimen.treatment.manner,
                    )
                    edited = [stack.enter_context(edit()) for edit in regimen.treatment.edits]
                parts = (regimen.treatment.figures, trained.figures, *edited)
                figures = {name: value for each in parts for name, value in each.items()}
                count = sum(parameter.numel() for parameter in selected.values())
                yield _Model(count, trained.steps, figures, regimen.treatment.steerings)
        finally:
            self._restore(selected)

    def _generate(self, model: _Model) -> NDArray[np.uint8]:
        with self._clock("generate"):
            return self.judge.generate(model.steerings)

    def _measure(self, images: NDArray[np.uint8]) -> Mapping[str, Measurement]:
        with self._clock("losses"):
            evidence = self.judge.evidence()
        with self._clock("measure"):
            return self.judge.measure(images, evidence)

    @torch.no_grad()
    def _restore(self, selected: Mapping[str, Tensor]) -> None:
        """Puts back what a fine-tune may have moved: the selected parameters, and every buffer."""
        for name, parameter in selected.items():
            parameter.copy_(self._base[name])
        for name, buffer in self.backbone.denoiser.named_buffers():
            buffer.copy_(self._base[name])

    @contextmanager
    def _clock(self, part: str) -> Iterator[None]:
        started, self._part = time.perf_counter(), part
        yield
        if self.backbone.device.type == "cuda":  # what was asked of it may still be on its way
            torch.cuda.synchronize(self.backbone.device)
        self.seconds[part] = time.perf_counter() - started
