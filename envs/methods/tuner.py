"""What peft needs for a tuner of one's own: a type, a configuration, a model, and layers that wrap and merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import PeftType, register_peft_method
from torch import Tensor, nn

SUPPORTED = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
"""The layers that our tuners can wrap."""


def register_tuner(name: str, config: type[PeftConfig], model: type[BaseTuner]) -> None:
    """Makes a tuner known to peft, whose loading and saving go by the members of an enum that is closed.

    The only place that touches the enum's private parts.
    """
    member = name.upper()
    if member not in PeftType.__members__:
        new = str.__new__(PeftType, member)
        new._name_, new._value_ = member, member
        type.__setattr__(PeftType, member, new)  # EnumType's own refuses
        PeftType._member_names_.append(member)
        PeftType._member_map_[member] = new
        PeftType._value2member_map_[member] = new
    if PeftType(member) not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=name, config_cls=config, model_cls=model)


@dataclass
class TunerConfig(PeftConfig):
    """Which layers a tuner wraps.

    Attributes:
        tuner: The name that it is registered by.
        target_modules: Names, name endings or a regular expression; None for every layer that the tuner can use.
        exclude_modules: The same for layers to leave alone.
    """

    tuner: ClassVar[str] = ""

    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = PeftType(self.tuner.upper())


class TunerLayer(nn.Module, BaseTunerLayer):
    """A wrapper around one layer that computes with another weight and bias.

    Subclasses keep their parameters in ``ParameterDict`` by adapter, named by ``adapter_layer_names``.

    Args:
        base_layer: One of `SUPPORTED`.
        adapter_name: Of the first adapter.
        config: Of the tuner.
        key: The layer's dotted name in the model.
    """

    base_layer: Any

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: TunerConfig, key: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []
        self._before_merge: tuple[Tensor, Tensor | None] | None = None
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        self._active_adapter = [adapter_name]
        self.update_layer(adapter_name, config, key)

    def add_parameters(self, adapter_name: str, config: TunerConfig, key: str) -> None:
        """Adds an adapter's parameters at values that change nothing."""
        raise NotImplementedError

    def adapted(self, names: Sequence[str], weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight and bias that the adapters together make of the base layer's."""
        raise NotImplementedError

    def forward_adapted(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """The layer's output with these adapters."""
        layer = self.base_layer
        return applied(layer, x, *self.adapted(names, layer.weight, layer.bias))

    def update_layer(self, adapter_name: str, config: TunerConfig, key: str) -> None:
        """Adds an adapter."""
        self.add_parameters(adapter_name, config, key)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output with the adapters that are active."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        names = [] if self.disable_adapters or self.merged else self.present(self.active_adapters)
        if not names:
            output: Tensor = self.base_layer(x)
            return output
        return self.forward_adapted(x, names)

    def present(self, names: Sequence[str]) -> list[str]:
        """Which of these adapters have parameters here."""
        stores = [getattr(self, store) for store in self.adapter_layer_names]
        return [name for name in names if any(name in store for store in stores)]

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Writes the adapters into the base layer.

        Raises:
            ValueError: If ``safe_merge`` is set and the result is not finite.
        """
        wanted = check_adapters_to_merge(self, adapter_names)
        names = [name for name in wanted if name in self._get_available_adapters()]
        if not names:
            return
        layer = self.base_layer
        before = self._before_merge
        if before is None:  # a copy, because subtracting again what was added would not give the same bits
            before = (layer.weight.clone(), None if layer.bias is None else layer.bias.clone())
        weight, bias = self.adapted([*self.merged_adapters, *names], *before)
        if safe_merge and not all(tensor.isfinite().all() for tensor in (weight, bias) if tensor is not None):
            raise ValueError(f"merging {', '.join(names)} gives weights that are not finite")
        self._write(weight, bias)
        self._before_merge = before
        self.merged_adapters.extend(names)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Puts the base layer back, to the last bit."""
        if self._before_merge is not None:
            self._write(*self._before_merge)
        self._before_merge = None
        self.merged_adapters.clear()

    def _write(self, weight: Tensor, bias: Tensor | None) -> None:
        self.base_layer.weight.copy_(weight)
        if bias is not None:
            self.base_layer.bias.copy_(bias)


def applied(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One of `SUPPORTED` with another weight and bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    if isinstance(layer, nn.Conv2d):
        convolved: Tensor = layer._conv_forward(x, weight, bias)
        return convolved
    if isinstance(layer, nn.GroupNorm):
        # Hooks of the base layer do not run here, so neither does the guard of envs.backbones.norms: the CPU
        # backward of GroupNorm in torch 2.13.0 segfaults on a channels_last input that needs no gradient.
        return F.group_norm(x.contiguous(), layer.num_groups, weight, bias, layer.eps)
    assert isinstance(layer, nn.LayerNorm)
    return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)


class TunerModel(BaseTuner):
    """A peft model that wraps every targeted layer in its ``tuner_layer_cls``."""

    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (peft declares it so)

    def targets(self, model: nn.Module) -> list[str]:
        """Dotted names of the layers that the tuner can use, inside wrappers left out."""
        return [
            name for name, module in model.named_modules() if isinstance(module, SUPPORTED) and "base_layer" not in name
        ]

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        assert isinstance(config, TunerConfig)
        if config.target_modules is None:
            wrapped = [name for name, module in model.named_modules() if isinstance(module, TunerLayer)]
            config.target_modules = sorted({*wrapped, *self.targets(model)})

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config, TunerConfig)
        if isinstance(target, TunerLayer):
            target.update_layer(adapter_name, peft_config, current_key)
            return
        if not isinstance(target, SUPPORTED) or target.weight is None:
            raise ValueError(f"{current_key} is a {type(target).__name__}: {self.prefix}tuning has no such layer")
        kind: type[Any] = self.tuner_layer_cls
        layer = kind(target, adapter_name, peft_config, current_key)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)
