"""What a training step costs: every method with every mask, in turns."""

from __future__ import annotations

import dataclasses
import time
from statistics import median

import torch

from agents.capacity.settings import MethodsSettings
from agents.study.laboratory import Cell, Laboratory
from envs.finetune import finetune
from envs.task import Schedule


def step_times(settings: MethodsSettings) -> dict[str, dict[str, float]]:
    """Median milliseconds of a training step by method and mask, 0 where nothing learns.

    Each repeat goes through all of them in turn, so that a machine whose speed drifts moves all alike.

    Args:
        settings: Of the comparison; the first of its data sets is trained on.
    """
    torch.set_num_threads(settings.threads)
    laboratory = Laboratory(settings, settings.envs[0], settings.masks, "methods")
    budget = dataclasses.replace(settings.inner, steps=settings.timing.steps, warmup=0)
    found: dict[str, dict[str, list[float]]] = {m: {mask: [] for mask in laboratory.masks} for m in settings.methods}
    evaluators = {
        method: laboratory.factory(laboratory.task(Cell(method, "", budget.steps, 1e-5, 0), "heldout"))(0)
        for method in settings.methods
    }
    for repeat in range(settings.timing.repeats + 1):
        for method, evaluator in evaluators.items():
            for name, mask in laboratory.masks.items():
                started = time.perf_counter()
                schedule, data = Schedule.constant(mask), evaluator.training_set
                trained = finetune(evaluator.backbone, evaluator.attachment, schedule, data, budget, 0)
                if repeat:  # the first one warms up
                    milliseconds = 1000 * (time.perf_counter() - started)
                    found[method][name].append(milliseconds / trained.steps if trained.steps else 0.0)
    return {method: {mask: median(times) for mask, times in of.items()} for method, of in found.items()}
