"""The inner loop: a short fine-tune of exactly the parameters that a schedule of masks selects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from envs.backbones.base import Backbone
from envs.batches import TrainingSet
from envs.course import Course, MakeHooks, Training, Watcher, one_learner
from envs.hooks import Batch
from envs.losses import training_loss
from envs.methods import Attachment
from envs.seeding import torch_generator
from envs.task import InnerBudget, Schedule


@dataclass(frozen=True)
class Manner:
    """What is done in a fine-tune besides plain training.

    Attributes:
        hooks: Around the steps of each learner.
        course: Which learners there are.
        watcher: Makes what looks at the model on the way.
    """

    hooks: tuple[MakeHooks, ...] = ()
    course: Course = one_learner
    watcher: Callable[[], Watcher] | None = None


PLAIN = Manner()
"""Nothing."""


@dataclass(frozen=True)
class Trained:
    """What a fine-tune came to.

    Attributes:
        steps: Optimizer steps taken; in fp16 the first few may overflow and be none.
        figures: Of what was done besides plain training, by name.
    """

    steps: int
    figures: Mapping[str, float] = field(default_factory=dict)


def finetune(
    backbone: Backbone,
    attachment: Attachment,
    schedule: Schedule,
    data: TrainingSet,
    budget: InnerBudget,
    seed: int,
    manner: Manner = PLAIN,
) -> Trained:
    """Trains in place.

    Batches, noise and timesteps depend on ``seed`` alone, never on the masks (common random numbers). Each phase of the
    schedule gets an equal share of the steps and an AdamW of its own; a phase with nothing on takes no steps. Every
    parameter is frozen again on return, also after an error.

    Args:
        backbone: With its denoiser in the state to start from.
        attachment: Of the method.
        schedule: Which of its parameters learn; of one phase, unless training is plain.
        data: The training images.
        budget: Of the whole fine-tune.
        seed: See above.
        manner: What is done besides plain training.

    Raises:
        DivergedError: If the loss is not finite, or in fp16 no step's gradients were.
    """
    if manner != PLAIN and len(schedule.phases) > 1:
        raise ValueError(f"{len(schedule.phases)} phases, and training that is not plain has one")
    steps, figures = 0, dict[str, float]()
    bounds = [round(i * budget.steps / len(schedule.phases)) for i in range(len(schedule.phases) + 1)]
    for mask, first, stop in zip(schedule.phases, bounds, bounds[1:], strict=False):
        chosen = list(attachment.selected(mask).values())
        if not chosen:
            continue
        watcher = None if manner.watcher is None else manner.watcher()
        training = Training(backbone, chosen, data, budget, seed, first, stop, manner.hooks, watcher)
        with _only(backbone, chosen), backbone.compiled():
            figures |= manner.course(training)
        figures |= training.figures()
        steps += training.steps
    return Trained(steps, figures)


def one_pass(backbone: Backbone, data: TrainingSet, batch_size: int, seed: int) -> Iterator[Tensor]:
    """The training losses of one pass over the images in order, each the mean over a batch times the batch's share.

    So their sum is the mean over all images, and so is that of their gradients.
    """
    generator = torch_generator(seed, "one pass")
    n, device = len(data.latents), data.latents.device
    for rows in torch.arange(n).split(batch_size):
        latents, states = data.latents[rows.to(device)], data.states[rows.to(device)]
        noise = torch.randn(latents.shape, generator=generator).to(device)
        t = torch.randint(backbone.timesteps, (len(latents),), generator=generator).to(device)
        yield training_loss(backbone, Batch(latents, states, noise, t, rows)) * (len(latents) / n)


@contextmanager
def _only(backbone: Backbone, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside, these parameters require gradients and no others; on exit none does, and none has any."""
    # Before an optimizer is built: a parameter that it does not know cannot move.
    backbone.denoiser.requires_grad_(False)
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        backbone.denoiser.requires_grad_(False)
        backbone.denoiser.zero_grad(set_to_none=True)
