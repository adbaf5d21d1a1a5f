"""Fine-tune, generation and evaluation against the arithmetic that they cannot do without."""

from __future__ import annotations

import copy
import dataclasses
from statistics import median

import torch
import torch.nn.functional as F

from agents.benchmarks.base import Finding, Goal, paired
from agents.settings import TrainSettings
from agents.workbench import Workbench
from envs.evaluators.finetune import FineTuneEvaluator
from envs.finetune import finetune
from envs.generate import sample_latents
from envs.task import Schedule


def build_evaluator(bench: Workbench) -> FineTuneEvaluator:
    """The evaluator of the search's task in this process."""
    assert bench.make_factory is not None
    return bench.make_factory(bench.search)(0)


def everything(bench: Workbench) -> Schedule:
    """The schedule with every group on."""
    return Schedule.constant([True] * len(bench.search.groups))


def bench_finetune(settings: TrainSettings, bench: Workbench, runs: int) -> Finding:
    """The inner loop / the same forward, backward and optimizer steps on tensors that lie ready."""
    evaluator, steps = build_evaluator(bench), 30
    backbone, data, attachment = evaluator.backbone, evaluator.training_set, evaluator.attachment
    budget = dataclasses.replace(settings.inner, steps=steps, warmup=0)
    rows = torch.arange(budget.batch_size) % len(data.latents)
    latents, states = data.latents[rows], data.states[rows]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(latents.device)
    t = torch.linspace(0, backbone.timesteps - 1, budget.batch_size).long().to(latents.device)
    noisy, target = backbone.noised(latents, noise, t)
    parameters = list(attachment.selected((True,) * len(bench.search.groups)).values())

    def loop() -> None:
        finetune(backbone, attachment, everything(bench), data, budget, seed=0)

    def bare() -> None:
        backbone.denoiser.requires_grad_(True)
        optimizer = torch.optim.AdamW(parameters, lr=budget.learning_rate, weight_decay=budget.weight_decay)
        for _ in range(steps):
            F.mse_loss(backbone.denoiser(noisy, t, states, return_dict=False)[0], target).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        backbone.denoiser.requires_grad_(False)

    ours, floor, ratio = paired(loop, bare, runs)
    return Finding(
        {"finetune_s": ours, "bare_loop_s": floor, "ratio": ratio},
        (Goal("ratio", 1.10),),
        runs,
        {"steps": steps, "batch_size": budget.batch_size},
    )


def bench_generate(settings: TrainSettings, bench: Workbench, runs: int) -> Finding:
    """Sampling latents / the same number of bare denoiser calls."""
    evaluator, images, steps = build_evaluator(bench), 64, settings.inner.sampling_steps
    backbone, data = evaluator.backbone, evaluator.training_set
    states = data.states[torch.arange(images) % len(data.states)]
    scheduler = copy.deepcopy(backbone.scheduler)
    scheduler.set_timesteps(steps)
    x = torch.randn((images, *backbone.latent_shape), generator=torch.Generator().manual_seed(0)).to(states.device)

    def sample() -> None:
        sample_latents(backbone, states, data.empty_state, steps=steps, guidance_scale=1.0, seed=0)

    @torch.inference_mode()
    def bare() -> None:
        for t in scheduler.timesteps:
            backbone.denoiser(x, t, states, return_dict=False)

    ours, floor, ratio = paired(sample, bare, runs)
    return Finding(
        {"sample_s": ours, "bare_forwards_s": floor, "ratio": ratio},
        (Goal("ratio", 1.10),),
        runs,
        {"images": images, "sampling_steps": steps},
    )


def bench_evaluation(settings: TrainSettings, bench: Workbench, runs: int) -> Finding:
    """Share of a full evaluation at the run's own budget that is neither fine-tune nor generation."""
    evaluator = build_evaluator(bench)
    shares, totals = [], []
    for _ in range(min(runs, 3)):
        total = evaluator.evaluate(everything(bench)).seconds
        totals.append(total)
        shares.append(1 - (evaluator.seconds["finetune"] + evaluator.seconds["generate"]) / total)
    return Finding(
        {"evaluation_s": median(totals), "rest_share": median(shares)},
        (Goal("rest_share", 0.15),),
        len(totals),
        {"inner": dataclasses.asdict(settings.inner)},
    )
