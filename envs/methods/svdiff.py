"""Shifts of the singular values of every weight of a group that is on (SVDiff, arXiv 2303.11305)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from envs.groups import LayerGroup
from envs.methods.base import Attachment, Calibration, Method, attach_peft, nothing_to_train
from envs.methods.svd import Basis, decomposed
from envs.methods.tuner import SUPPORTED, TunerConfig, TunerLayer, TunerModel, register_tuner


@dataclass
class SVDiffConfig(TunerConfig):
    """See `TunerConfig`."""

    tuner: ClassVar[str] = "svdiff"


class _Materialised:
    """A weight that was computed, and the state of the tensors that it was computed from; copies are empty.

    A tensor's version grows with each change in place, but a copy of the tensor counts anew.
    """

    def __init__(self) -> None:
        self._weight: Tensor | None = None
        self._sources: list[tuple[Tensor, int]] = []

    def get(self, sources: Sequence[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        same = len(sources) == len(self._sources) and all(
            tensor is known and tensor._version == version
            for tensor, (known, version) in zip(sources, self._sources, strict=True)
        )
        if self._weight is None or not same:
            # A tensor made in inference mode could not take part in a later fine-tune of other layers.
            with torch.inference_mode(False), torch.no_grad():
                self._weight = compute()
            self._sources = [(tensor, tensor._version) for tensor in sources]
        return self._weight

    def __reduce__(self) -> tuple[type[_Materialised], tuple[()]]:
        return _Materialised, ()


class SVDiffLayer(TunerLayer):
    """W' = U relu(S + d) V^T (SVDiff eq. 2), computed as W + U (relu(S + d) - S) V^T: without a shift, W to the bit.

    A convolution is the matrix out x in*k*k. A vector, the weight of a norm, is the matrix 1 x n: its one shift scales
    it. Several adapters add their shifts. The product is made once an optimizer step: a weight whose shifts do not need
    a gradient is kept until a shift changes in place.
    """

    adapter_layer_names = ("svdiff_shift",)
    svdiff_shift: nn.ParameterDict

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: TunerConfig, key: str) -> None:
        # Not buffers: they can be computed anew from the base weight, and state is copied and restored in many places.
        self._basis: Basis | None = None
        self._kept = _Materialised()
        super().__init__(base_layer, adapter_name, config, key)

    @property
    def basis(self) -> Basis:
        """U ``(out, r)``, S ``(r,)`` and V^T ``(r, n)`` of the base layer's weight before any merge."""
        if self._basis is None:
            weight = self.base_layer.weight if self._before_merge is None else self._before_merge[0]
            self._basis = decomposed(as_matrix(weight.detach()))
        return self._basis

    def add_parameters(self, adapter_name: str, config: TunerConfig, key: str) -> None:
        """A shift of 0 for each singular value."""
        self.svdiff_shift[adapter_name] = nn.Parameter(torch.zeros_like(self.basis.s))

    def adapted(self, names: Sequence[str], weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The base weight with these shifts of its spectrum; the bias as it is."""
        return self._shifted(names, weight), bias

    def forward_adapted(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """The layer's output with these adapters."""
        weight, bias = self.base_layer.weight, self.base_layer.bias
        sources = [weight, *(self.svdiff_shift[name] for name in names)]
        if torch.is_grad_enabled() and any(source.requires_grad for source in sources):
            return self.apply_with(x, self._shifted(names, weight), bias)
        return self.apply_with(x, self._kept.get(sources, lambda: self._unless_zero(names, weight)), bias)

    def _unless_zero(self, names: Sequence[str], weight: Tensor) -> Tensor:
        # Most groups of most masks are off: no copy of their weights.
        moved = any(bool(self.svdiff_shift[name].any()) for name in names)
        return self._shifted(names, weight) if moved else weight.detach()

    def _shifted(self, names: Sequence[str], weight: Tensor) -> Tensor:
        u, s, vh = self.basis
        total = sum((self.svdiff_shift[name] for name in names[1:]), self.svdiff_shift[names[0]])
        change = torch.relu(s + total) - s
        return torch.addmm(as_matrix(weight), u * change, vh).view_as(weight)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        if self._basis is not None:
            self._basis = Basis(*map(fn, self._basis))
        self._kept = _Materialised()
        module: nn.Module = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return module


class SVDiffModel(TunerModel):
    """A model with shifted spectra, for peft."""

    prefix: str = "svdiff_"
    tuner_layer_cls = SVDiffLayer


register_tuner("svdiff", SVDiffConfig, SVDiffModel)


def as_matrix(weight: Tensor) -> Tensor:
    """A weight as the matrix whose spectrum is shifted: out x the rest, a vector as one row."""
    return weight.flatten(1) if weight.ndim > 1 else weight[None]


@dataclass(frozen=True)
class SVDiff(Method):
    """Spectral shifts of every convolution, linear layer and norm."""

    name: ClassVar[str] = "svdiff"

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
        """See `Method.__call__`. Decompositions are kept on disk, see `envs.methods.svd`."""
        if not any(isinstance(module, SUPPORTED) for module in denoiser.modules()):
            raise nothing_to_train(self.name, denoiser)
        return attach_peft(denoiser, groups, {"default": SVDiffConfig()}, seed)
