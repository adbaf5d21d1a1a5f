"""What "may learn" means inside a layer group that is on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from envs.groups import LayerGroup
from envs.task import Mask
from rewards.errors import InputError


@dataclass(frozen=True)
class Attachment:
    """A method attached to a denoiser: the parameters that each group may train.

    Attributes:
        parameters: For each group, in order, ``{dotted name: parameter}``; empty where the method finds nothing.
    """

    parameters: tuple[dict[str, nn.Parameter], ...]

    def selected(self, mask: Mask) -> dict[str, nn.Parameter]:
        """The parameters of the groups that are on."""
        if len(mask) != len(self.parameters):
            raise ValueError(f"a mask of {len(mask)} toggles for {len(self.parameters)} groups")
        return {name: p for on, group in zip(mask, self.parameters, strict=True) if on for name, p in group.items()}


Method = Callable[[nn.Module, Sequence[LayerGroup]], Attachment]
"""Attaches a method to a denoiser. The output of the denoiser stays what it was; nothing is trainable yet."""


def subset_method(name: str, learns: Callable[[nn.Module, str, nn.Parameter], bool]) -> Method:
    """A method that trains parameters that the denoiser already has.

    Args:
        name: For error messages.
        learns: ``(denoiser, dotted name, parameter) -> bool``.
    """

    def attach(denoiser: nn.Module, groups: Sequence[LayerGroup]) -> Attachment:
        chosen = tuple({n: p for n, p in g.parameters_in(denoiser) if learns(denoiser, n, p)} for g in groups)
        if not any(chosen):
            raise InputError(
                f"method={name} finds nothing to train in a {type(denoiser).__name__}", "choose another method"
            )
        return Attachment(chosen)

    return attach
