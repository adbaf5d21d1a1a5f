"""What each mitigation costs, against the passes through the denoiser that its algorithm cannot do without."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from agents.benchmarks.base import Finding, Goal, seconds
from agents.benchmarks.inner import build_evaluator
from agents.settings import TrainSettings
from agents.workbench import Workbench
from envs.evaluators.finetune import FineTuneEvaluator
from envs.finetune import finetune
from envs.generate import generate
from envs.mitigations import MITIGATIONS, Regimen, Stage, Treatment, find_mitigations, prepare_regimen
from envs.task import InnerBudget, Schedule

_STEPS, _IMAGES = 40, 32
_SETTINGS: dict[str, dict[str, Any]] = {
    "iet": {"shards": 2, "rounds": 2},
    "threshold": {"value": 1e6},  # leaves nothing out, and costs no calibration
    "threshold_sampling": {"target": 1e-6},  # every caption is above it
    "dp_sgd": {"noise_multiplier": 1.0, "epsilon": None},
}
_PER_SAMPLE_GRADIENTS = "dp_sgd"
"""Costs gradients of single samples, which no number of passes explains."""


@dataclasses.dataclass
class _Passes:
    """Samples that went through the denoiser, with a graph and without."""

    learned: int = 0
    looked: int = 0


def bench_mitigations(settings: TrainSettings, bench: Workbench, runs: int) -> Finding:
    """Of each mitigation: time against the same without it, and that over what its passes explain.

    ``<name>_ratio`` is the median over runs taken in turns, of fine-tunes for what acts in training and on weights, of
    sampling for what acts there. ``<name>_excess`` is the time over that of its passes through the denoiser, a pass
    with a graph being as long as a plain training step's is, for one sample, and one without as long as one of plain
    sampling.
    """
    evaluator = build_evaluator(bench)
    budget = dataclasses.replace(settings.inner, steps=_STEPS, warmup=0)
    plain = Regimen(evaluator.training_set, Treatment())
    train, sample = _training(evaluator, budget), _sampling(evaluator, settings.inner)
    train(plain)
    sample(plain)
    figures: dict[str, float] = {}
    goals = []
    for name, kind in MITIGATIONS.items():
        regimen = _regimen(evaluator, bench, name, budget)
        act, other = (sample, train) if kind.stage is Stage.SAMPLING else (train, sample)
        with _counted(evaluator.backbone.denoiser) as passes:
            act(regimen)
        with _counted(evaluator.backbone.denoiser) as own:
            act(plain)
        ratios, excesses = [], []
        for _ in range(runs):
            ours, bare = seconds(partial(act, regimen)), seconds(partial(act, plain))
            rest = seconds(partial(other, plain))
            per_step, per_look = (rest, bare) if kind.stage is Stage.SAMPLING else (bare, rest)
            step = per_step / (_STEPS * budget.batch_size)
            look = per_look / (_IMAGES * settings.inner.sampling_steps)
            more = (passes.learned - own.learned) * step + (passes.looked - own.looked) * look
            ratios.append(ours / bare)
            excesses.append(ours / (bare + more))
        figures[f"{name}_ratio"] = median(ratios)
        if name != _PER_SAMPLE_GRADIENTS:
            figures[f"{name}_excess"] = median(excesses)
            goals.append(Goal(f"{name}_excess", 1.10))
    return Finding(figures, tuple(goals), runs, {"steps": _STEPS, "images": _IMAGES, "settings": _SETTINGS})


def _regimen(evaluator: FineTuneEvaluator, bench: Workbench, name: str, budget: InnerBudget) -> Regimen:
    assert bench.dataset is not None
    return prepare_regimen(
        find_mitigations({name: _SETTINGS.get(name, {})}),
        evaluator.backbone,
        evaluator.attachment,
        evaluator.task.method,
        bench.dataset.train,
        bench.dataset.heldout,
        budget,
        seed=0,
    )


def _training(evaluator: FineTuneEvaluator, budget: InnerBudget) -> Callable[[Regimen], None]:
    schedule = Schedule.constant([True] * len(evaluator.task.groups))
    base = {name: p.detach().clone() for name, p in evaluator.backbone.denoiser.named_parameters()}

    def act(regimen: Regimen) -> None:
        with ExitStack() as stack:
            backbone, attachment, manner = evaluator.backbone, evaluator.attachment, regimen.treatment.manner
            finetune(backbone, attachment, schedule, regimen.training_set, budget, 0, manner)
            for edit in regimen.treatment.edits:
                stack.enter_context(edit())
        with torch.no_grad():
            for name, parameter in evaluator.backbone.denoiser.named_parameters():
                parameter.copy_(base[name])

    return act


def _sampling(evaluator: FineTuneEvaluator, inner: InnerBudget) -> Callable[[Regimen], None]:
    data = evaluator.training_set
    states = data.states[torch.arange(_IMAGES) % len(data.states)]

    def act(regimen: Regimen) -> None:
        generate(
            evaluator.backbone,
            states,
            data.empty_state,
            steps=inner.sampling_steps,
            guidance_scale=1.0,
            seed=0,
            steerings=regimen.treatment.steerings,
        )

    return act


@contextmanager
def _counted(denoiser: nn.Module) -> Iterator[_Passes]:
    """Counts samples while inside."""
    passes = _Passes()

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            passes.learned += len(inputs[0])
        else:
            passes.looked += len(inputs[0])

    handle = denoiser.register_forward_pre_hook(count)
    try:
        yield passes
    finally:
        handle.remove()
