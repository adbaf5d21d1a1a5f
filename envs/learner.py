"""An optimizer, the batches it sees, and the steps it takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from envs.backbones.base import Backbone
from envs.hooks import Batch, Hooks
from envs.losses import sample_losses, training_loss
from envs.task import InnerBudget

_CHECK_EVERY = 10


class DivergedError(FloatingPointError):
    """The loss stopped being a finite number: the same happens again with the same key, so no retry helps."""


class Lesson(NamedTuple):
    """What is learned from a batch.

    Attributes:
        loss: Mean over the samples that are left, with its graph.
        samples: How many there are, above 0.
    """

    loss: Tensor
    samples: int


def lesson_of(backbone: Backbone, batch: Batch, hooks: Sequence[Hooks]) -> Lesson | None:
    """What hooks leave of a batch; None if they leave no sample.

    Args:
        backbone: With the denoiser as it learns.
        batch: As drawn.
        hooks: Of the learner, in their order.

    Raises:
        DivergedError: If no sample is left, and not all losses are finite.
    """
    for hook in hooks:
        admitted = hook.admitted(batch)
        if admitted is not None:
            batch = batch.take(admitted)
            if not len(batch.t):
                return None
    if all(type(hook).kept is Hooks.kept for hook in hooks):
        # Bit by bit the loss of plain training: a mean of means is rounded otherwise.
        return Lesson(training_loss(backbone, batch), len(batch.t))
    losses = every = sample_losses(backbone, batch)
    for hook in hooks:
        kept = hook.kept(losses, batch)
        if kept is not None:
            losses, batch = losses[kept], batch.take(kept)
            if not len(losses):
                # What is no number compares with nothing: a diverged model would be left out for ever, and unseen.
                if not torch.isfinite(every).all():
                    raise DivergedError("the losses of a batch are not finite")
                return None
    return Lesson(losses.mean(), len(losses))


class Learner:
    """Trains parameters in place, step by step.

    In fp16 the first few steps may overflow and be none, and hooks may leave out every sample of a batch.

    Args:
        backbone: What they are part of.
        parameters: Those that learn. They alone may require gradients: what the optimizer does not know cannot move.
        draws: One batch after another.
        budget: Learning rate and weight decay.
        hooks: What happens besides.
        first: Number of the first step, which the learning rate follows.

    Attributes:
        hooks: As given.
        budget: As given.
        step: Number of the next step.
        taken: Steps that moved the parameters.
        overflown: Steps that did not because their gradients overflowed.
    """

    def __init__(
        self,
        backbone: Backbone,
        parameters: Sequence[nn.Parameter],
        draws: Iterator[Batch],
        budget: InnerBudget,
        hooks: Sequence[Hooks] = (),
        *,
        first: int = 0,
    ) -> None:
        self.hooks, self.budget, self.step = tuple(hooks), budget, first
        self.taken = self.overflown = 0
        self._backbone, self._parameters, self._draws = backbone, list(parameters), draws
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            parameters, lr=budget.learning_rate, weight_decay=budget.weight_decay
        )
        for hook in self.hooks:
            optimizer = hook.optimizer(optimizer)
        self._optimizer = optimizer
        # Small gradients are zero in fp16 unless the loss is scaled up; the scaler leaves out steps that overflow then.
        self._scaler = torch.amp.GradScaler(backbone.device.type, enabled=backbone.execution.precision == "fp16")

    def learn(self, steps: int) -> None:
        """Goes on for ``steps`` steps.

        Raises:
            DivergedError: If a loss is not finite.
        """
        stop = self.step + steps
        with ExitStack() as stack:
            for hook in self.hooks:
                stack.enter_context(hook.learning())
            while self.step < stop:
                self._optimizer.param_groups[0]["lr"] = self.budget.learning_rate_at(self.step)
                lesson = lesson_of(self._backbone, next(self._draws), self.hooks)
                self.step += 1
                if lesson is None:
                    continue
                loss = lesson.loss
                self._scaler.scale(loss).backward()
                self._move()
                # Asking for the loss waits for the device, so not every step asks.
                if ((self.step - 1) % _CHECK_EVERY == 0 or self.step == stop) and not torch.isfinite(loss):
                    raise DivergedError(f"the loss is {loss.item()} at step {self.step}")

    @contextmanager
    def delivered(self) -> Iterator[None]:
        """Inside, the parameters are those that the fine-tune would end with if it ended now."""
        with ExitStack() as stack:
            for hook in self.hooks:
                stack.enter_context(hook.delivered(self._parameters))
            yield

    def _move(self) -> None:
        scale = self._scaler.get_scale()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        moved = self._scaler.get_scale() >= scale
        self._optimizer.zero_grad(set_to_none=True)
        self.taken, self.overflown = self.taken + moved, self.overflown + (not moved)
        if moved:
            for hook in self.hooks:
                hook.stepped(self._parameters)
