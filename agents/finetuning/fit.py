"""The course of a long fine-tune: steps, validations, checkpoints, and an end at the last step or at a threshold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from agents.finetuning.checkpoints import Checkpoints
from agents.finetuning.curves import Curves
from agents.finetuning.interruption import Interruption
from agents.finetuning.settings import TrainingSettings
from agents.finetuning.stop import StopRule
from agents.finetuning.trainer import State, Trainer
from agents.finetuning.validation import Validation
from rewards.errors import InputError

_log = logging.getLogger(__name__)

_WITHIN = "within/"


@dataclass
class Books:
    """What only the process that writes has.

    Attributes:
        validate: Looks at the model as it stands.
        rule: That may end the training.
        curves: Of the run.
        checkpoints: Of the run.
        within: Weights of the last validated model within the rule's limit; empty without a rule.
        within_step: Steps after which it was validated; None without a rule.
    """

    validate: Callable[[], Validation]
    rule: StopRule
    curves: Curves
    checkpoints: Checkpoints
    within: Mapping[str, Tensor] = field(default_factory=dict)
    within_step: int | None = None

    def look(self, trainer: Trainer) -> Validation:
        """Validates the averaged model.

        Raises:
            DivergedError: If its losses are not finite.
        """
        with trainer.averaged():
            return self.validate()

    def enter(self, trainer: Trainer, found: Validation) -> bool:
        """Writes a validation down; True if the rule ends the training.

        Raises:
            InputError: If the rule cannot be judged, or the base model breaks it already.
        """
        broken = self.rule.broken(found.metrics)
        if broken and trainer.step == 0:
            raise InputError(f"the base model is beyond the limit already: {self.rule.words}", "raise stop.limit")
        if not broken and self.rule.metric is not None:
            with trainer.averaged():
                self.within, self.within_step = trainer.snapshot(), trainer.step
        self.curves.validated(trainer.step, found.metrics, found.grid, found.seconds)
        values = ", ".join(f"{name} {m.value:.4g}" for name, m in found.metrics.items() if m.value is not None)
        _log.info("step %d: %s, %.1f s", trainer.step, values, found.seconds)
        return broken

    def save(self, trainer: Trainer, ended: bool) -> None:
        """Writes a checkpoint that `load` goes on from."""
        state = trainer.state()
        within = {f"{_WITHIN}{name}": tensor for name, tensor in self.within.items()}
        more = {"history": self.curves.history, "within_step": self.within_step, "ended": ended}
        self.checkpoints.save(State(state.tensors | within, state.numbers | more))

    def load(self, state: State) -> None:
        """Takes back what `save` kept besides the trainer's state and the curves."""
        marked = {name: tensor for name, tensor in state.tensors.items() if name.startswith(_WITHIN)}
        self.within = {name.removeprefix(_WITHIN): tensor for name, tensor in marked.items()}
        self.within_step = state.numbers["within_step"]


def fit(
    trainer: Trainer,
    training: TrainingSettings,
    accelerator: Accelerator,
    books: Books | None,
    *,
    ended: bool,
    show: Callable[[int], None],
) -> bool:
    """Trains to the end and leaves a checkpoint of it.

    Args:
        trainer: In any state.
        training: How long, and how often what.
        accelerator: For what processes have to agree on.
        books: Of the process that writes; None in the others.
        ended: Whether the rule has ended the training already.
        show: Told how many steps are done.

    Returns:
        True if the rule ended it.

    Raises:
        KeyboardInterrupt: After Ctrl-C or SIGTERM, once the state after the last whole step is kept.
    """
    kept = False
    try:
        with Interruption(always=accelerator.num_processes > 1) as interruption:
            while True:
                step = trainer.step
                if not ended and (step % training.validation_steps == 0 or step == training.steps):
                    if books is not None and not books.curves.has_validated(step):
                        # To look, weights are swapped: an interruption then finds them in neither state.
                        books.save(trainer, ended)
                        kept = True
                        found = books.look(trainer)
                        with interruption.held():
                            ended = books.enter(trainer, found)
                        kept = False
                    ended = _agreed(ended, accelerator)
                if ended or step == training.steps:
                    break
                with interruption.held():
                    record = trainer.train_step()
                    if books is not None and record is not None:
                        books.curves.trained(record)
                show(trainer.step)
                if _any(interruption.pending, accelerator):
                    raise KeyboardInterrupt
                if books is not None and trainer.step % training.checkpoint_steps == 0:
                    books.save(trainer, ended)
    except KeyboardInterrupt:
        if books is not None and not kept:
            books.save(trainer, ended)
        raise
    if books is not None:
        books.save(trainer, ended)
    return ended


def _agreed(ended: bool, accelerator: Accelerator) -> bool:
    """What the process that writes says; the others wait for it."""
    if accelerator.num_processes == 1:
        return ended
    said = [ended]
    broadcast_object_list(said)
    return said[0]


def _any(pending: bool, accelerator: Accelerator) -> bool:
    """True if a signal has arrived in some process."""
    if accelerator.num_processes == 1:
        return pending
    return bool(accelerator.reduce(torch.tensor(float(pending), device=accelerator.device), "sum") > 0)
