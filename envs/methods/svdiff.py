"""Shifts of the singular values of every weight of a group that is on (SVDiff, arXiv 2303.11305)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs.groups import LayerGroup
from envs.methods.base import Attachment, Calibration, Method, attach_peft, nothing_to_train
from envs.methods.svd import Basis, decomposed
from envs.methods.tuner import SUPPORTED, TunerConfig, TunerLayer, TunerModel, applied, register_tuner


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
        self._sources: list[Tensor] = []  # held, so that no other tensor gets the id of one
        self._state: list[tuple[int, int]] = []

    def get(self, sources: list[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        state = [(id(tensor), tensor._version) for tensor in sources]
        if self._weight is None or state != self._state:
            # A tensor made in inference mode could not take part in a later fine-tune of other layers, and one made
            # under autocast would be of another type outside.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(sources[0].device.type, enabled=False):
                self._weight = compute()
            self._sources, self._state = sources, state
        return self._weight

    def __reduce__(self) -> tuple[type[_Materialised], tuple[()]]:
        return _Materialised, ()


class SVDiffLayer(TunerLayer):
    """W' = U relu(S + d) V^T (SVDiff eq. 2).

    A convolution is the matrix out x in*k*k. A vector, the weight of a norm, is the matrix 1 x n: its one shift scales
    it. Several adapters add their shifts.

    Without a gradient the layer computes with W + U (relu(S + d) - S) V^T, which without a shift is W to the bit, and
    keeps that weight until a shift changes in place. For a gradient of the shifts it takes the cheaper of two ways,
    which differ in rounding: to make this weight, and its whole gradient on the way back, or to apply V^T, relu(S + d)
    and U one after the other, which needs no gradient of a weight.
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
            u, s, vh = decomposed(as_matrix(weight.detach()))
            # Of a vector U is 1 or -1: with the sign in V, applying it can be left out.
            self._basis = Basis(u, s, vh) if weight.ndim > 1 else Basis(u * u, s, u * vh)
        return self._basis

    def add_parameters(self, adapter_name: str, config: TunerConfig, key: str) -> None:
        """A shift of 0 for each singular value."""
        self.svdiff_shift[adapter_name] = nn.Parameter(torch.zeros_like(self.basis.s))

    def adapted(self, names: Sequence[str], weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The base weight with these shifts of its spectrum; the bias as it is."""
        return self._shifted(weight, *self._shifts(names)), bias

    def forward_adapted(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """The layer's output with these adapters."""
        layer, shifts = self.base_layer, self._shifts(names)
        sources = [layer.weight, *shifts]
        if not (torch.is_grad_enabled() and any(source.requires_grad for source in sources)):
            return applied(layer, x, self._kept.get(sources, lambda: self._unless_zero(*sources)), layer.bias)
        if not sources[0].requires_grad and self._factors_are_cheaper(layer, x):
            return self._apply_factors(x, shifts)
        return applied(layer, x, self._shifted(*sources), layer.bias)

    def _shifts(self, names: Sequence[str]) -> list[Tensor]:
        store = self.svdiff_shift
        return [store[name] for name in names]

    def _unless_zero(self, weight: Tensor, *shifts: Tensor) -> Tensor:
        # Most groups of most masks are off: no copy of their weights.
        return self._shifted(weight, *shifts) if any(bool(shift.any()) for shift in shifts) else weight.detach()

    def _spectrum(self, shifts: Sequence[Tensor]) -> Tensor:
        return torch.relu(sum(shifts, self.basis.s))

    def _shifted(self, weight: Tensor, *shifts: Tensor) -> Tensor:
        u, s, vh = self.basis
        change = self._spectrum(shifts) - s
        if weight.ndim == 1:
            return torch.addcmul(weight, change, vh[0])
        return torch.addmm(as_matrix(weight), u * change, vh).view_as(weight)

    def _factors_are_cheaper(self, layer: nn.Module, x: Tensor) -> bool:
        """By the multiplications of a forward and backward pass, for an m x n matrix applied at p positions.

        With a weight: p m n for the output, the input's gradient and the weight's each, and m r n for making the weight
        and for bringing its gradient back to the shifts. With factors: p r (m + n) for the output and the input's
        gradient.
        """
        if isinstance(layer, nn.Linear):
            positions = x.numel() // x.shape[-1]
        elif isinstance(layer, nn.Conv2d) and layer.groups == 1:
            positions = x.shape[0] * (x.shape[2] // layer.stride[0]) * (x.shape[3] // layer.stride[1])
        else:
            return False
        u, s, vh = self.basis
        m, r, n = len(u), len(s), vh.shape[1]
        return 2 * positions * r * (m + n) < 3 * positions * m * n + 2 * m * r * n

    def _apply_factors(self, x: Tensor, shifts: Sequence[Tensor]) -> Tensor:
        """U (relu(S + d) * (V^T x)) + bias."""
        layer, (u, _, vh), spectrum = self.base_layer, self.basis, self._spectrum(shifts)
        if isinstance(layer, nn.Linear):
            return F.linear(F.linear(x, vh) * spectrum, u, layer.bias)
        coefficients = layer._conv_forward(x, vh.view(-1, *layer.weight.shape[1:]), None)
        return F.conv2d(coefficients * spectrum[:, None, None], u[:, :, None, None], layer.bias)

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
