"""What "may learn" means inside a layer group that is on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn

from envs.groups import LayerGroup
from envs.seeding import derive_seed
from envs.task import Mask
from rewards.errors import InputError

Calibration = Callable[[], Iterable[Tensor]]
"""Yields the training loss of one batch after another, in one pass over the training images, with its graph."""


@dataclass(frozen=True)
class Attachment:
    """A method attached to a denoiser: the parameters that each toggle may train.

    Attributes:
        parameters: For each toggle, in order, ``{dotted name: parameter}``; empty where the method finds nothing.
        peft: The denoiser as peft wraps it, to save, merge or disable what was learned; None for other methods.
    """

    parameters: tuple[dict[str, nn.Parameter], ...]
    peft: PeftModel | None = None

    def selected(self, mask: Mask) -> dict[str, nn.Parameter]:
        """The parameters of the toggles that are on."""
        if len(mask) != len(self.parameters):
            raise ValueError(f"a mask of {len(mask)} toggles for {len(self.parameters)}")
        return {name: p for on, toggle in zip(mask, self.parameters, strict=True) if on for name, p in toggle.items()}


class Method(Protocol):
    """An adaptation method with its settings; implementations are subclasses."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Every setting that changes numbers, as JSON values; empty if there is none."""
        ...

    def toggles(self, groups: Sequence[LayerGroup]) -> tuple[LayerGroup, ...]:
        """What a mask switches: the groups, unless a method has more than one thing to switch in each."""
        return tuple(groups)

    def __call__(
        self,
        denoiser: nn.Module,
        groups: Sequence[LayerGroup],
        *,
        calibration: Calibration | None = None,
        seed: int = 0,
    ) -> Attachment:
        """Attaches the method to a denoiser that has no method yet.

        The output of the denoiser stays what it was; nothing is trainable yet. Modules that a method adds lie in the
        groups' modules, so that a group's toggle covers them.

        Args:
            denoiser: Changed in place by methods that add parameters.
            groups: A partition of its modules; the attachment has an entry for each of their `toggles`.
            calibration: One pass over the training images, for methods that choose by gradients.
            seed: Of what a method draws.

        Raises:
            InputError: If the method finds nothing to train, or a setting does not fit the denoiser.
        """
        ...


@dataclass(frozen=True)
class SubsetMethod(Method):
    """A method that trains parameters that the denoiser already has.

    Subclasses are frozen dataclasses, whose fields are their settings.
    """

    name: ClassVar[str]

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Method.settings`."""
        return asdict(self)

    def learns(self, denoiser: nn.Module, name: str) -> bool:
        """Whether the parameter of this dotted name may learn."""
        raise NotImplementedError

    def __call__(
        self,
        denoiser: nn.Module,
        groups: Sequence[LayerGroup],
        *,
        calibration: Calibration | None = None,
        seed: int = 0,
    ) -> Attachment:
        """See `Method.__call__`."""
        chosen = tuple({n: p for n, p in g.parameters_in(denoiser) if self.learns(denoiser, n)} for g in groups)
        if not any(chosen):
            raise nothing_to_train(self.name, denoiser)
        return Attachment(chosen)


def nothing_to_train(name: str, denoiser: nn.Module) -> InputError:
    """The error of a method that fits no layer of a denoiser."""
    return InputError(f"method={name} finds nothing to train in a {type(denoiser).__name__}", "choose another method")


def attach_peft(
    denoiser: nn.Module, groups: Sequence[LayerGroup], configs: Mapping[str, PeftConfig], seed: int
) -> Attachment:
    """Attaches adapters of peft, by name, which replace the targeted layers in place by wrappers around them.

    Several are all active, and each group has a toggle for each, in their order.
    """
    if any(isinstance(module, BaseTunerLayer) for module in denoiser.modules()):
        raise ValueError("the denoiser has a method already")
    first, *others = configs
    with adding(denoiser, seed) as before:
        model = get_peft_model(denoiser, configs[first], adapter_name=first)
        for name in others:
            model.add_adapter(name, configs[name])
        if others:
            tuner = model.base_model
            assert isinstance(tuner, BaseTuner)
            tuner.set_adapter(list(configs))
    added = added_parameters(denoiser, groups, before)
    toggles = tuple({n: p for n, p in group.items() if name in n.split(".")} for group in added for name in configs)
    return Attachment(toggles, model)


@contextmanager
def adding(denoiser: nn.Module, seed: int) -> Iterator[set[int]]:
    """For code that adds modules: it yields the ids of the parameters that were there before.

    What the code draws comes from the seed alone; on exit everything is frozen and in the denoiser's training mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "method"))
        yield {id(parameter) for parameter in denoiser.parameters()}
    denoiser.requires_grad_(False)
    denoiser.train(denoiser.training)


def added_parameters(
    denoiser: nn.Module, groups: Sequence[LayerGroup], before: set[int]
) -> tuple[dict[str, nn.Parameter], ...]:
    """For each group what lies in its modules now and was not there before."""
    return tuple({n: p for n, p in g.parameters_in(denoiser) if id(p) not in before} for g in groups)


def count_setting(name: str, value: Any) -> int:
    """A setting that has to be a whole number above 0.

    Raises:
        InputError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"method.options.{name}={value}", "set it to a whole number of 1 or more")
    return value
