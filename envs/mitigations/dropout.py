"""Dropout inside the denoiser, while it trains and only then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D, ResnetBlockCondNorm2D
from torch import Tensor, nn

from envs.backbones.base import Backbone
from envs.datasets.base import ImageSet
from envs.hooks import Hooks
from envs.mitigations.base import Mitigation, Situation, Stage, Treatment, within
from envs.seeding import derive_seed
from rewards.errors import InputError


@dataclass(frozen=True)
class Dropout(Mitigation):
    """Values inside residual blocks and feed-forward layers are zero with some probability, others scaled up.

    Srivastava et al., JMLR 2014; in a denoiser, Ho et al., arXiv 2006.11239, who needed it on CIFAR-10 against
    overfitting. It acts where diffusers has its ``Dropout`` modules: before the second convolution of each residual
    block and between the two layers of each feed-forward network, also where a method's adapters sit around those
    layers. Nothing else of the denoiser leaves evaluation mode. Looks at the model on the way, losses and samples are
    without it.

    Gradient checkpointing draws each mask twice, the same. A compiled denoiser draws other masks than one that is not,
    from the same seed; so does a GPU.

    Attributes:
        p: Probability in [0, 1); 0 for none.
    """

    p: float = 0.1
    name: ClassVar[str] = "dropout"
    stage: ClassVar[Stage] = Stage.STEP
    source: ClassVar[str] = "Srivastava et al., JMLR 2014; Ho et al., NeurIPS 2020, arXiv 2006.11239"

    def __post_init__(self) -> None:
        if not within(self.p, 0.0, 1.0) or self.p == 1:
            raise self.refused("p", "set it to 0 or more and below 1")

    def check(self, backbone: Backbone, images: ImageSet, method: str) -> None:
        """See `Mitigation.check`."""
        super().check(backbone, images, method)
        if not places(backbone.denoiser):
            raise InputError(
                f"mitigation=dropout: {backbone.name} has no residual block and no feed-forward layer of diffusers",
                "choose another mitigation or backbone",
            )

    def treatment(self, situation: Situation) -> Treatment:
        """See `Mitigation.treatment`."""
        if not self.p:
            return Treatment()
        backbone, seed = situation.backbone, situation.seed
        return Treatment(
            hooks=(lambda number: Dropping(backbone.denoiser, self.p, derive_seed(seed, "dropout", number)),)
        )


def places(denoiser: nn.Module) -> list[nn.Dropout]:
    """The dropout of residual blocks and feed-forward layers; that of attention and of adapters is left alone."""
    found: list[nn.Module] = []
    for block in denoiser.modules():
        if isinstance(block, (ResnetBlock2D, ResnetBlockCondNorm2D)):
            found.append(block.dropout)
        elif isinstance(block, FeedForward):
            found.extend(block.net)
    return [module for module in found if isinstance(module, nn.Dropout)]


class Dropping(Hooks):
    """See `Dropout`.

    Args:
        denoiser: Whose dropout is switched on and off.
        p: Its probability.
        seed: Of the masks of one learner.
    """

    def __init__(self, denoiser: nn.Module, p: float, seed: int) -> None:
        self._denoiser, self._p, self._seed = denoiser, p, seed
        self._states: list[Tensor] | None = None

    @contextmanager
    def learning(self) -> Iterator[None]:
        """See `Hooks.learning`; masks go on where they were when the learner paused."""
        modules = places(self._denoiser)
        settings = [(module.p, module.training) for module in modules]
        # torch's dropout draws from the global generators, and only their state is what checkpointing repeats.
        generators = _global_generators(next(self._denoiser.parameters()).device)
        states = [generator.get_state() for generator in generators]
        try:
            for i, generator in enumerate(generators):
                if self._states is None:
                    generator.manual_seed(self._seed)
                else:
                    generator.set_state(self._states[i])
            for module in modules:
                module.p, module.training = self._p, True
            yield
            self._states = [generator.get_state() for generator in generators]
        finally:
            for module, (p, training) in zip(modules, settings, strict=True):
                module.p, module.training = p, training
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)

    def state(self) -> dict[str, Tensor]:
        """See `Hooks.state`."""
        return {str(i): state.clone() for i, state in enumerate(self._states or ())}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """See `Hooks.load`."""
        self._states = [state[str(i)] for i in range(len(state))] or None


def _global_generators(device: torch.device) -> list[torch.Generator]:
    """The CPU's, and the device's if it is a GPU."""
    return [torch.default_generator, *([torch.cuda.default_generators[device.index]] if device.type == "cuda" else [])]
