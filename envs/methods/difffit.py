"""Biases, norms and a new scale for each block of a group that is on (DiffFit, arXiv 2304.06648)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from peft import PeftConfig
from torch import Tensor, nn

from envs.groups import LayerGroup
from envs.methods.base import Attachment, Calibration, Method, attach_peft, nothing_to_train
from envs.methods.tuner import SUPPORTED, TunerConfig, TunerLayer, TunerModel, applied, register_tuner


@dataclass
class DiffFitConfig(TunerConfig):
    """Which layers are wrapped, and which end a block.

    Attributes:
        scaled_modules: Dotted names of the layers whose output is scaled; None for the last layer of every residual
            branch: of residual blocks, attentions and feed-forward layers of diffusers.
    """

    tuner: ClassVar[str] = "difffit"

    scaled_modules: list[str] | None = field(default=None)


class DiffFitLayer(TunerLayer):
    """Differences to a bias, or to a norm's weight and bias, and a scale of the output where a block ends.

    DiffFit trains biases and norms themselves. As differences they can be merged, disabled and added to those of
    another adapter; weight decay, if any, then pulls to the base model. Scales of several adapters multiply.
    """

    adapter_layer_names = ("difffit_weight", "difffit_bias", "difffit_scale")
    difffit_weight: nn.ParameterDict
    difffit_bias: nn.ParameterDict
    difffit_scale: nn.ParameterDict

    def add_parameters(self, adapter_name: str, config: TunerConfig, key: str) -> None:
        """Differences of 0 and a scale of 1."""
        assert isinstance(config, DiffFitConfig)
        layer = self.base_layer
        if isinstance(layer, (nn.GroupNorm, nn.LayerNorm)):
            self.difffit_weight[adapter_name] = nn.Parameter(torch.zeros_like(layer.weight))
        if layer.bias is not None:
            self.difffit_bias[adapter_name] = nn.Parameter(torch.zeros_like(layer.bias))
        if key in (config.scaled_modules or ()):
            self.difffit_scale[adapter_name] = nn.Parameter(torch.ones_like(layer.weight.flatten()[:1]))

    def adapted(self, names: Sequence[str], weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight and bias that a merge writes."""
        weight, bias = self._moved(names, weight, bias)
        scale = self._scale(names)
        if scale is None:
            return weight, bias
        return weight * scale, None if bias is None else bias * scale

    def forward_adapted(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """The layer's output with these adapters."""
        layer = self.base_layer
        output = applied(layer, x, *self._moved(names, layer.weight, layer.bias))
        # Of the output: a scale of the weight would make the backward pass compute the whole weight's gradient.
        scale = self._scale(names)
        return output if scale is None else output * scale

    def _moved(self, names: Sequence[str], weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        for name in names:
            if name in self.difffit_weight:
                weight = weight + self.difffit_weight[name]
            if bias is not None and name in self.difffit_bias:
                bias = bias + self.difffit_bias[name]
        return weight, bias

    def _scale(self, names: Sequence[str]) -> Tensor | None:
        scales = [self.difffit_scale[name] for name in names if name in self.difffit_scale]
        return torch.stack(scales).prod(dim=0) if scales else None


class DiffFitModel(TunerModel):
    """A model with moved biases and norms and scaled blocks, for peft."""

    prefix: str = "difffit_"
    tuner_layer_cls = DiffFitLayer

    def targets(self, model: nn.Module) -> list[str]:
        """Norms, layers with a bias, and ends of blocks."""
        ends = set(block_ends(model))
        names = super().targets(model)
        return [name for name in names if name in ends or _has_vector(model.get_submodule(name))]

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        assert isinstance(config, DiffFitConfig)
        if config.scaled_modules is None:
            config.scaled_modules = block_ends(model)
        super()._pre_injection_hook(model, config, adapter_name)


register_tuner("difffit", DiffFitConfig, DiffFitModel)


def block_ends(model: nn.Module) -> list[str]:
    """Dotted names of the last layers of residual branches."""
    ends = []
    for name, module in model.named_modules():
        if isinstance(module, ResnetBlock2D):
            ends.append(f"{name}.conv2")
        elif isinstance(module, Attention):
            ends.append(f"{name}.to_out.0")
        elif isinstance(module, FeedForward):
            last = max(i for i, layer in enumerate(module.net) if hasattr(layer, "weight"))
            ends.append(f"{name}.net.{last}")
    return ends


def _has_vector(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.GroupNorm, nn.LayerNorm)) or layer.bias is not None


@dataclass(frozen=True)
class DiffFit(Method):
    """DiffFit on a UNet. An embedding of classes, which DiffFit trains too, stays as it is: captions take its place."""

    name: ClassVar[str] = "difffit"

    @property
    def settings(self) -> Mapping[str, Any]:
        """None."""
        return {}

    def __call__(
        self,
        denoiser: nn.Module,
        groups: Sequence[LayerGroup],
        *,
        calibration: Calibration | None = None,
        seed: int = 0,
    ) -> Attachment:
        """See `Method.__call__`."""
        if not any(isinstance(module, SUPPORTED) and _has_vector(module) for module in denoiser.modules()):
            raise nothing_to_train(self.name, denoiser)
        return attach_peft(denoiser, groups, {"default": DiffFitConfig()}, seed)
