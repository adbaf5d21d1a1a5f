"""From settings to the things that a long fine-tune needs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from agents.finetuning.choice import Choice, choose
from agents.finetuning.saving import can_fold
from agents.finetuning.settings import FinetuneSettings
from agents.finetuning.trainer import Trainer
from agents.finetuning.treatment import LongTreatment, check_schedule, prepare_treatment
from agents.workbench import check_captions, method_options, mitigation_options, prepare_backbone, prepare_images
from envs.backbones.base import Backbone, check_guidance
from envs.batches import encode
from envs.datasets.base import SplitDataset
from envs.finetune import one_pass
from envs.groups import find_groups
from envs.judge import Judge
from envs.methods import Attachment, find_method
from envs.mitigations import find_mitigations
from envs.task import SelectionTask
from rewards.suite import Suite

_PATIENCE = timedelta(days=2)
"""How long a process waits for the one that validates."""


@dataclass(frozen=True)
class Workplace:
    """Everything loaded and checked; nothing trained or written.

    Attributes:
        task: Names what is tuned; judged by the test split in the end.
        dataset: The images.
        backbone: With the method attached.
        base: Where the backbone's pipeline lies.
        base_names: In the state of its denoiser before the method was attached.
        total_parameters: Of its denoiser before the method was attached.
        toggles: Names of what a mask switches.
        choice: What learns.
        attachment: Of the method.
        treatment: What mitigations do.
        trainer: At step 0.
        heldout: Measures validations; None in processes that do not write.
        test: Measures the finished model; None in processes that do not write.
    """

    task: SelectionTask
    dataset: SplitDataset
    backbone: Backbone
    base: Path
    base_names: frozenset[str]
    total_parameters: int
    toggles: tuple[str, ...]
    choice: Choice
    attachment: Attachment
    treatment: LongTreatment
    trainer: Trainer
    heldout: Judge | None
    test: Judge | None


def start_accelerator(settings: FinetuneSettings) -> Accelerator:
    """One for the process: its device, precision and the processes beside it (``accelerate launch``)."""
    torch.backends.cudnn.deterministic = True
    precision = settings.backbone.precision
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=settings.training.accumulation,
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )


def prepare(settings: FinetuneSettings, accelerator: Accelerator) -> Workplace:
    """Loads images and backbone, chooses what learns, and attaches the method.

    Raises:
        InputError: If a name is unknown, data is missing or wrong, or settings do not fit together.
    """
    method, budget = find_method(settings.method.name, settings.method.options), settings.budget
    mitigations = find_mitigations(settings.mitigation)
    Suite([*settings.validation_metrics, *settings.reward.final_metrics])
    dataset = prepare_images(settings.env, settings.data)
    backbone, base = prepare_backbone(settings.backbone, settings.env, accelerator.device)
    check_guidance(backbone, budget.guidance_scale, "inner.guidance_scale")
    check_captions(backbone, dataset, settings.env)
    groups = find_groups(backbone.denoiser, settings.groups.name)
    choice = choose(settings, method, groups, dataset, backbone)
    check_schedule(mitigations, choice.schedule)
    training_set = encode(backbone, dataset.train)
    final = dataclasses.replace(budget, images=settings.final.images)
    final_seed = settings.seed + settings.final.seed_offset
    heldout = test = None
    if accelerator.is_main_process:
        # While the denoiser is the base model, whose losses membership is compared with.
        metrics = settings.validation_metrics
        heldout = Judge(backbone, dataset.train, training_set, dataset.heldout, budget, metrics, settings.seed)
        metrics = settings.reward.final_metrics
        test = Judge(backbone, dataset.train, training_set, dataset.test, final, metrics, final_seed)
    base_names = frozenset(backbone.denoiser.state_dict())
    total = sum(p.numel() for p in backbone.denoiser.parameters())
    attachment = method(
        backbone.denoiser,
        groups,
        calibration=lambda: one_pass(backbone, training_set, budget.batch_size, settings.seed),
        seed=settings.seed,
    )
    treatment = prepare_treatment(
        mitigations,
        backbone,
        attachment,
        settings.method.name,
        dataset,
        training_set,
        budget,
        settings.seed,
        processes=accelerator.num_processes,
        foldable=can_fold(backbone.denoiser, attachment, base_names),
    )
    trainer = Trainer(
        backbone,
        attachment,
        choice.schedule,
        treatment.training_set,
        budget,
        settings.training,
        settings.ema,
        accelerator,
        settings.seed,
        treatment.hooks,
    )
    toggles = tuple(toggle.name for toggle in method.toggles(groups))
    task = SelectionTask(
        env=settings.env.name,
        split_sha256=dataset.split_sha256,
        backbone=settings.backbone.name,
        backbone_sha256=backbone.sha256,
        method=settings.method.name,
        scheme=settings.groups.name,
        groups=toggles,
        inner=final,
        metrics=tuple(settings.reward.final_metrics),
        judge="test",
        seed=settings.seed,
        options=method_options(method) | mitigation_options(mitigations),
    )
    return Workplace(
        task,
        dataset,
        backbone,
        base,
        base_names,
        total,
        toggles,
        choice,
        attachment,
        treatment,
        trainer,
        heldout,
        test,
    )
