"""The long fine-tune, step by step: its state after a step depends on the state before and on the step's number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from agents.finetuning.settings import EMASettings, TrainingSettings
from envs.backbones.base import Backbone
from envs.batches import TrainingSet, draw_batch
from envs.hooks import Batch, Hooks
from envs.learner import DivergedError, lesson_of
from envs.methods import Attachment
from envs.seeding import torch_generator
from envs.task import InnerBudget, Schedule
from rewards.errors import InputError

_CHECK_EVERY = 10


class StepRecord(NamedTuple):
    """What a step is known by.

    Attributes:
        step: How many there have been.
        loss: Mean over those of the step's images that hooks left.
        learning_rate: Of the step.
        gradient_norm: Before it was clipped; None if it overflowed, as in half precision it may.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float | None


@dataclass(frozen=True)
class State:
    """Everything that the next step depends on.

    Attributes:
        tensors: Trained parameters, their average, the optimizer's moments, what hooks remember.
        numbers: JSON values.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


class Trainer:
    """Trains the parameters that a schedule selects, and no other, in place.

    A step's batch, noise and timesteps are drawn for all of its images from the seed and the step's number, and only
    then shared out over processes and passes: how many there are changes a step by rounding at most. Hooks look at one
    pass after another, so what one of them remembers of a pass counts in the next of the same step.

    Of hooks only these parts act here, in one process and one phase: states, admitted, kept, learning, which is entered
    for each step, and stepped. A step of which they leave no sample changes nothing, not even the average.

    Args:
        backbone: With its denoiser in the base state, the method attached.
        attachment: Of the method.
        schedule: A mask for each phase; phases share the steps equally, each with an AdamW of its own.
        data: The training images.
        budget: Steps, batch size, learning rate.
        training: Clipping and accumulation.
        ema: Of the average.
        accelerator: Says where, in which precision and beside which processes.
        seed: Of everything drawn.
        hooks: What happens besides.

    Attributes:
        parameters: What learns in some phase, by name.
        hooks: As given.
        step: How many steps there have been.

    Raises:
        InputError: If nothing can be trained in the groups that are on, or the batch cannot be shared out equally.
    """

    def __init__(
        self,
        backbone: Backbone,
        attachment: Attachment,
        schedule: Schedule,
        data: TrainingSet,
        budget: InnerBudget,
        training: TrainingSettings,
        ema: EMASettings,
        accelerator: Accelerator,
        seed: int,
        hooks: Sequence[Hooks] = (),
    ) -> None:
        passes = training.accumulation * accelerator.num_processes
        if budget.batch_size % passes:
            raise InputError(
                f"training.batch_size={budget.batch_size} in {training.accumulation} passes of "
                f"{accelerator.num_processes} processes",
                f"set it to a multiple of {passes}",
            )
        self._phases = [attachment.selected(mask) for mask in schedule.phases]
        self.parameters: dict[str, nn.Parameter] = {}
        for selected in self._phases:
            self.parameters |= selected
        if not self.parameters:
            raise InputError(f"mask={schedule.key}: the method has no parameter in these groups", "switch others on")
        self.step, self.hooks = 0, tuple(hooks)
        self._backbone, self._data, self._budget, self._seed = backbone, data, budget, seed
        self._accelerator, self._clip = accelerator, math.inf if training.clip is None else training.clip
        self._share = slice(accelerator.process_index, None, accelerator.num_processes)
        self._passes = training.accumulation
        self._phase = -1
        self._optimizer: AcceleratedOptimizer | None = None
        self._compilation = ExitStack()
        self._ema: EMAModel | None = None
        if ema.decay:
            self._ema = EMAModel(self.parameters.values(), decay=ema.decay, use_ema_warmup=True, power=ema.power)

    def train_step(self) -> StepRecord | None:
        """One optimizer step; what it is known by, every tenth time, because asking waits for the device.

        Raises:
            DivergedError: If the loss was not finite when it was asked for.
        """
        step, budget = self.step, self._budget
        self._enter_phase(step)
        self.step += 1
        if self._optimizer is None:
            return None
        rate = budget.learning_rate_at(step)
        self._optimizer.param_groups[0]["lr"] = rate
        with ExitStack() as stack:
            for hook in self.hooks:
                stack.enter_context(hook.learning())
            found = self._move(step, self._optimizer)
        if found is None:
            return None
        loss, norm = found
        if self._ema is not None:
            self._ema.step(self.parameters.values())
        if self.step % _CHECK_EVERY and self.step < budget.steps:
            return None
        if not torch.isfinite(loss):
            raise DivergedError(f"the loss is {loss.item()} at step {self.step}")
        return StepRecord(self.step, loss.item(), rate, norm.item() if torch.isfinite(norm) else None)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model has its averaged weights, if there is an average, and is not compiled."""
        with self._backbone.eager():
            if self._ema is None:
                yield
                return
            self._ema.store(self.parameters.values())
            self._ema.copy_to(self.parameters.values())
            try:
                yield
            finally:
                self._ema.restore(self.parameters.values())

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the trained parameters as they are."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def finish(self, weights: Mapping[str, Tensor] | None = None) -> None:
        """Freezes everything and leaves the model with these weights; None for its average, or else its last ones."""
        self._freeze()
        if weights is not None:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(weights[name])
        elif self._ema is not None:
            self._ema.copy_to(self.parameters.values())

    def state(self) -> State:
        """What `load` goes on from."""
        tensors: dict[str, Tensor] = {f"parameters/{name}": p.detach() for name, p in self.parameters.items()}
        numbers: dict[str, Any] = {"step": self.step}
        if self._ema is not None:
            tensors |= {f"ema/{name}": s for name, s in zip(self.parameters, self._ema.shadow_params, strict=True)}
            numbers["ema_steps"] = self._ema.optimization_step
        # At the start of a phase its optimizer has nothing to remember.
        if self._optimizer is not None and self.step not in self._bounds:
            moments = self._optimizer.state_dict()["state"]
            tensors |= {f"optimizer/{i}/{key}": value for i, each in moments.items() for key, value in each.items()}
        if self._accelerator.scaler is not None:
            numbers["scaler"] = self._accelerator.scaler.state_dict()
        for i, hook in enumerate(self.hooks):
            tensors |= {f"hooks/{i}/{name}": tensor for name, tensor in hook.state().items()}
        return State(tensors, numbers)

    @torch.no_grad()
    def load(self, state: State) -> None:
        """Takes back what `state` gave.

        Raises:
            KeyError: If a tensor is missing.
            RuntimeError: If one has another shape.
        """
        tensors, numbers = state.tensors, state.numbers
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"parameters/{name}"])
        if self._ema is not None:
            for name, shadow in zip(self.parameters, self._ema.shadow_params, strict=True):
                shadow.copy_(tensors[f"ema/{name}"])
            self._ema.optimization_step = int(numbers["ema_steps"])
        self.step = int(numbers["step"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                _, index, key = name.split("/")
                moments.setdefault(int(index), {})[key] = tensor
        self._enter_phase(self.step)
        if moments and self._optimizer is not None:
            self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": moments})
        if self._accelerator.scaler is not None and "scaler" in numbers:
            self._accelerator.scaler.load_state_dict(numbers["scaler"])
        for i, hook in enumerate(self.hooks):
            prefix = f"hooks/{i}/"
            hook.load({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})

    @property
    def _bounds(self) -> list[int]:
        return [round(i * self._budget.steps / len(self._phases)) for i in range(len(self._phases) + 1)]

    def _enter_phase(self, step: int) -> None:
        """The mask is applied before the optimizer is built: a parameter that it does not know cannot move."""
        bounds = self._bounds
        phase = max(i for i in range(len(self._phases)) if bounds[i] <= step)
        if phase == self._phase:
            return
        self._freeze()
        self._accelerator.free_memory()  # of the optimizer of the phase before
        self._phase, self._optimizer = phase, None
        chosen = list(self._phases[phase].values())
        for parameter in chosen:
            parameter.requires_grad_(True)
        if chosen:
            adam = torch.optim.AdamW(chosen, lr=self._budget.learning_rate, weight_decay=self._budget.weight_decay)
            self._optimizer = self._accelerator.prepare_optimizer(adam)
            self._compilation.enter_context(self._backbone.compiled())

    def _freeze(self) -> None:
        self._compilation.close()
        self._backbone.denoiser.requires_grad_(False)
        self._backbone.denoiser.zero_grad(set_to_none=True)

    def _move(self, step: int, optimizer: AcceleratedOptimizer) -> tuple[Tensor, Tensor] | None:
        """Moves the parameters; the loss and the gradient's norm, or None if hooks left no sample to learn from."""
        loss = norm = torch.zeros((), device=self._data.latents.device)
        chosen, samples, left = list(self._phases[self._phase].values()), 0, 0
        for batch in self._batches(step):
            with self._accelerator.accumulate(self._backbone.denoiser):
                with self._accelerator.autocast():
                    lesson = lesson_of(self._backbone, batch, self.hooks)
                samples += len(batch.t)
                if lesson is not None:
                    left += lesson.samples
                    part = lesson.loss
                    if self._passes > 1 and lesson.samples < len(batch.t):
                        part = part * (lesson.samples / len(batch.t))  # each sample left counts as much as any other
                    self._accelerator.backward(part)
                    loss = loss + part.detach() / self._passes
                if self._accelerator.sync_gradients:
                    if not left:
                        return None
                    if self._passes > 1 and left < samples:
                        loss = loss * (samples / left)
                        _scale_gradients(chosen, samples / left)
                    loss = self._averaged_over_processes(loss)
                    norm = self._accelerator.clip_grad_norm_(chosen, self._clip)
                optimizer.step()
                optimizer.zero_grad()
        if not optimizer.step_was_skipped:
            for hook in self.hooks:
                hook.stepped(chosen)
        return loss, norm

    def _batches(self, step: int) -> Iterator[Batch]:
        """This process's share of a step's images, in so many passes."""
        rows = rows_of_step(step, self._budget.batch_size, len(self._data.latents), self._seed)
        whole = draw_batch(
            self._data,
            rows,
            torch_generator(self._seed, "step", step),
            caption_dropout=self._budget.caption_dropout,
            timesteps=self._backbone.timesteps,
            hooks=self.hooks,
        )
        own = [tensor[self._share] for tensor in whole]
        for parts in zip(*(tensor.chunk(self._passes) for tensor in own), strict=True):
            yield Batch(*parts)

    def _averaged_over_processes(self, loss: Tensor) -> Tensor:
        """Averages the gradients, and the loss with them, over all processes.

        Not left to DistributedDataParallel: it wraps a model for one set of trainable parameters, and a schedule has
        one a phase; the gradients of a few groups are also small enough to travel in one piece.
        """
        if self._accelerator.num_processes == 1:
            return loss
        with torch.no_grad():
            gradients = [p.grad for p in self._phases[self._phase].values() if p.grad is not None]
            flat = torch.cat([*(gradient.flatten() for gradient in gradients), loss[None]])
            mean: Tensor = self._accelerator.reduce(flat, "mean")
            place = 0
            for gradient in gradients:
                gradient.copy_(mean[place : place + gradient.numel()].view_as(gradient))
                place += gradient.numel()
            return mean[-1].clone()


@torch.no_grad()
def _scale_gradients(parameters: Sequence[nn.Parameter], factor: float) -> None:
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(factor)


def rows_of_step(step: int, batch_size: int, images: int, seed: int) -> Tensor:
    """Which images a step sees, ``(batch_size,)``: shuffled passes over all of them, cut into batches.

    Args:
        step: Counted from 0.
        batch_size: Of a step.
        images: How many there are.
        seed: Of the shuffling.
    """
    first = step * batch_size
    passes = range(first // images, (first + batch_size - 1) // images + 1)
    order = torch.cat([torch.randperm(images, generator=torch_generator(seed, "pass", i)) for i in passes])
    start = first - passes[0] * images
    return order[start : start + batch_size]
