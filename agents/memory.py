"""What an evaluation needs of its device's memory, in words, before anything is paid for."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from agents.settings import TrainSettings
from envs.backbones.base import Backbone
from envs.backbones.execution import Execution
from envs.backbones.memory import GIB, MemoryPlan, available_memory, fitting, plan_memory


def memory_lines(
    settings: TrainSettings, backbone: Backbone, learning: Mapping[str, torch.Tensor], device: torch.device, beside: int
) -> tuple[str, ...]:
    """What one evaluation needs, and if that is more than there is, what would fit.

    Args:
        settings: Of the run.
        backbone: With the method attached.
        learning: Everything that the method can train, by name.
        device: Where evaluations run.
        beside: Workers that share the device.
    """

    def replan(batch_size: int, execution: Execution) -> MemoryPlan:
        return plan_memory(
            backbone,
            learning,
            batch_size=batch_size,
            sampled=settings.inner.images,
            guided=settings.inner.guidance_scale > 1,
            execution=execution,
        )

    plan = replan(settings.inner.batch_size, settings.backbone.execution)
    free = available_memory(device) // max(1, beside)
    lines = f"memory {plan} at batch size {plan.batch_size}", f"device {device}: {free / GIB:.2f} GiB free a worker"
    if plan.total <= free:
        return lines
    fits = fitting(plan, free, replan) or "no batch size: take fewer workers, a method that trains less, or more memory"
    return *lines, f"this does not fit; what would: {fits}"
