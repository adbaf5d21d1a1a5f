"""peft's layers of LoRA and DoRA, trained on a weight that is made once a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Conv2d, Linear
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.variants import DoraConv2dVariant, DoraLinearVariant
from torch import Tensor, nn

from envs.methods.tuner import applied

_NARROW = 128


class _Materialised(LoraLayer):
    """W' = W + B A (LoRA), m (W + B A) / |W + B A| by rows (DoRA, arXiv 2402.09353, eq. 5), applied as one layer.

    peft applies W, A and B one after the other, and for DoRA makes W + B A all the same for its norms. That saves the
    weight's gradient, but a product with a few columns takes as long as one with a full tile of them, and each result
    passes through memory several times: in narrow layers more than what it saves. There, and while adapters learn,
    these layers make W' instead; what they compute differs in rounding. Where a group is off, its frozen adapters have
    B = 0, and the layer is W alone. Everything else is peft's: parameters, files, merging, and every output without a
    gradient, which therefore is what plain peft computes from the same file.
    """

    _looked_at: tuple[object, bool] = ((), False)
    """In which state of their parameters the adapters were looked at last, and whether they then did nothing."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output with the adapters that are active."""
        layer: Any = self.get_base_layer()
        output: Tensor | None = None
        if not (args or kwargs or self.disable_adapters or self.merged):
            if self._does_nothing(layer):
                output = layer(x)
            elif torch.is_grad_enabled():
                output = self._learning(layer, x)
        return super().forward(x, *args, **kwargs) if output is None else output  # type: ignore[misc]

    def _does_nothing(self, layer: Any) -> bool:
        """Whether no active adapter learns and each is as it was made, so that it adds 0."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        # A compiled graph could not look again.
        if torch.compiler.is_compiling() or not all(self._is_known(name) for name in names):
            return False
        magnitudes: list[Any] = [self.lora_magnitude_vector[name] for name in names if name in self.lora_variant]
        downs, ups = ([factor[name].weight for name in names] for factor in (self.lora_A, self.lora_B))
        parts: list[Any] = [*ups, *(each.weight for each in magnitudes), layer.weight]
        if any(part.requires_grad for part in (*downs, *parts[:-1])) or any(part.is_inference() for part in parts):
            return False
        # Looking is a wait for the GPU: it is done anew only after a parameter was written, moved or replaced.
        state = tuple((part.data_ptr(), part._version, part.dtype) for part in parts)
        if self._looked_at[0] != state:
            nothing = not any(up.any() for up in parts[: len(ups)]) and all(
                torch.equal(each.weight, each.get_weight_norm(layer.weight, layer.weight.new_zeros(()), 1.0))
                for each in magnitudes
            )
            self._looked_at = state, nothing
        return self._looked_at[1]

    def _learning(self, layer: Any, x: Tensor) -> Tensor | None:
        """The output by way of W'; None where peft's way is cheaper or an adapter is of another kind."""
        weight, down, up = layer.weight, self.lora_A, self.lora_B
        if min(len(weight), weight.numel() // len(weight)) > _NARROW or getattr(layer, "groups", 1) > 1:
            return None
        factors: dict[str, Any] = {n: (up[n].weight, down[n].weight) for n in self.active_adapters if n in down}
        parts = [part for pair in factors.values() for part in pair]
        if not any(part.requires_grad for part in parts) or not all(self._is_known(name) for name in factors):
            return None
        if any(part.dtype != weight.dtype for part in parts):
            return None  # adapters of single precision on a model of half: peft converts between them
        return applied(layer, x, self._combined(weight, factors), layer.bias)

    def _is_known(self, name: str) -> bool:
        variant = type(self.lora_variant.get(name))
        return (
            variant in (type(None), DoraLinearVariant, DoraConv2dVariant)
            and not self.lora_bias[name]
            and isinstance(self.lora_dropout[name], nn.Identity)
        )

    def _combined(self, base: Tensor, factors: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        matrix = weight = base.flatten(1)
        for name, (b, a) in factors.items():
            b, a, scaling = b.flatten(1), a.flatten(1), self.scaling[name]
            moved = torch.addmm(weight, b, a, alpha=scaling)
            if name in self.lora_variant:
                # The norm counts as constant in the gradient (section 4.3), and is of this adapter alone.
                with torch.no_grad():
                    alone = moved if weight is matrix else torch.addmm(matrix, b, a, alpha=scaling)
                    norm = torch.linalg.vector_norm(alone, dim=1)
                magnitude: Any = self.lora_magnitude_vector[name].weight
                moved = moved * (magnitude.flatten() / norm)[:, None]
            weight = moved
        return weight.view_as(base)


class MaterialisedLinear(_Materialised, Linear):
    """See `train_materialised`."""


class MaterialisedConv2d(_Materialised, Conv2d):
    """See `train_materialised`."""


def train_materialised(config: LoraConfig) -> LoraConfig:
    """The configuration, with which peft now builds layers that train faster where they are narrow.

    They keep peft's parameters and files; what is saved loads without this package.
    """
    config._register_custom_module({nn.Linear: MaterialisedLinear, nn.Conv2d: MaterialisedConv2d})
    return config
