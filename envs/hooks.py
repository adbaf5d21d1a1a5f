"""Where something besides plain training may happen in the steps of a fine-tune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Batch(NamedTuple):
    """What one forward pass of a fine-tune looks at.

    Attributes:
        latents: ``(n, c, h, w)``.
        states: Text states, some of them the empty caption's, ``(n, tokens, width)``.
        noise: ``(n, c, h, w)``.
        t: Timesteps, ``(n,)``.
        rows: Which images of the training set these are, int64 ``(n,)``, on the CPU.
    """

    latents: Tensor
    states: Tensor
    noise: Tensor
    t: Tensor
    rows: Tensor

    def take(self, keep: Tensor) -> Batch:
        """The samples where ``keep``, bool ``(n,)``, is true."""
        return Batch(*(tensor[keep.to(tensor.device)] for tensor in self))


class Hooks:
    """What is done around the steps of one learner, which they belong to from its first step to its last.

    Subclasses override what they need; as it stands, every part does nothing. Of several, each part is called in their
    order, so a sample that the first one leaves out is never seen by the second.
    """

    def drawn(self, count: int, generator: torch.Generator) -> Tensor | None:
        """Which images the next batch has, int64 ``(n,)`` below ``count``, n > 0; None for passes in shuffled order.

        Of several hooks the first that draws decides.

        Args:
            count: Of the images that the learner draws from.
            generator: Of the learner's batches.
        """
        return None

    def states(self, states: Tensor, rows: Tensor) -> Tensor:
        """Text states to train on in place of the images' own, ``(n, tokens, width)``, before captions are dropped.

        Args:
            states: Of the captions, or what the hooks before made of them.
            rows: Images of the training set, ``(n,)``.
        """
        return states

    def admitted(self, batch: Batch) -> Tensor | None:
        """Samples that the forward pass sees, bool ``(n,)``; None for all."""
        return None

    def kept(self, losses: Tensor, batch: Batch) -> Tensor | None:
        """Samples whose losses are learned from, bool ``(n,)``; None for all.

        Args:
            losses: One a sample, ``(n,)``, with their graph.
            batch: What they belong to.
        """
        return None

    def learning(self) -> AbstractContextManager[object]:
        """Entered while the learner takes steps and left when it pauses."""
        return nullcontext()

    def optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """What takes the steps in the place of a new optimizer."""
        return optimizer

    def stepped(self, parameters: Sequence[nn.Parameter]) -> None:
        """Called after each step that the optimizer took."""

    def shared(self) -> list[Tensor]:
        """Tensors that learners average when they average their weights."""
        return []

    def delivered(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[object]:
        """Inside, the parameters are those that the fine-tune would end with if it ended now."""
        return nullcontext()

    def figures(self) -> dict[str, float]:
        """What became of it, by name: shares of samples left out and the like."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """What a resumed training needs in order to go on exactly, by name: whatever a part changes or reads again.

        That includes counts behind `figures`, and the state of a generator (``torch.Generator.get_state``, a uint8
        tensor). It is asked for between steps, while the learner pauses. Tensors share no memory; names hold no slash.
        """
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `state` gave, on the CPU, into new hooks that have the same settings."""
