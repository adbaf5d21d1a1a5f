"""SV-DIFF's two ways to an output with gradients, against its equation in double precision."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from envs.methods.svdiff import SVDiffConfig, SVDiffLayer, as_matrix
from envs.methods.tuner import applied
from envs.seeding import torch_generator

# The layer, the shape of its input, and whether U and V^T are applied one after the other.
LAYERS = {
    "narrow linear": (nn.Linear(12, 12), (64, 12), False),
    "few rows": (nn.Linear(12, 12), (2, 3, 12), True),
    "wide linear": (nn.Linear(6, 24, bias=False), (64, 6), True),
    "convolution": (nn.Conv2d(6, 8, 3, padding=1), (2, 6, 8, 8), True),
    "downsampling": (nn.Conv2d(6, 8, 3, stride=2, padding=1), (2, 6, 8, 8), True),
    "pointwise": (nn.Conv2d(12, 12, 1), (2, 12, 8, 8), False),
    "grouped": (nn.Conv2d(8, 8, 3, groups=4), (2, 8, 6, 6), False),
    "group norm": (nn.GroupNorm(2, 8), (2, 8, 4, 4), False),
    "layer norm": (nn.LayerNorm(8), (3, 8), False),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def wrapped(name: str) -> tuple[SVDiffLayer, Tensor, Tensor]:
    """The layer with drawn weights, an input and a gradient of its output."""
    layer, shape, _ = LAYERS[name]
    generator = torch_generator(0, name)
    model = nn.Sequential(copy.deepcopy(layer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    get_peft_model(model.requires_grad_(False), SVDiffConfig())
    ours = model[0]
    assert isinstance(ours, SVDiffLayer)
    x = torch.randn(shape, generator=generator)
    return ours, x, torch.randn(ours(x).shape, generator=generator)


def drawn_shift(layer: SVDiffLayer) -> nn.Parameter:
    """A shift on both sides of relu: beyond minus the singular value in every second place."""
    shift = layer.svdiff_shift["default"]
    assert isinstance(shift, nn.Parameter)
    with torch.no_grad():
        shift.copy_(torch.linspace(-0.4, 0.4, len(shift)))
        shift[::2].sub_(layer.basis.s[::2])
    return shift


def reference(layer: SVDiffLayer, shift: Tensor, x: Tensor) -> Tensor:
    """SVDiff eq. 2 in double precision.

    With the layer's own basis: close singular values leave room for others, which shifts of several sizes tell apart.
    """
    base = copy.deepcopy(layer.base_layer).double()
    u, s, vh = (part.double() for part in layer.basis)
    torch.testing.assert_close((u * s) @ vh, as_matrix(base.weight), rtol=1e-5, atol=1e-5)
    weight = (u @ torch.diag(torch.relu(s + shift)) @ vh).view_as(base.weight)
    return applied(base, x, weight, base.bias)


@each_layer
def test_output_and_gradients_are_the_equations(name: str) -> None:
    layer, x, slope = wrapped(name)
    shift = drawn_shift(layer)
    exact = [shift.detach().double().requires_grad_(True), x.double().requires_grad_(True)]
    expected = reference(layer, *exact)
    expected_slopes = torch.autograd.grad(expected, exact, slope.double())
    without = layer(x)
    shift.requires_grad_(True)
    ours = layer(x.requires_grad_(True))
    slopes = torch.autograd.grad(ours, [shift, x], slope)
    for got, wanted in ((without, expected), (ours, expected), *zip(slopes, expected_slopes, strict=True)):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=5e-5)
    dead = exact[0].detach() < -layer.basis.s.double()
    assert dead.any()
    assert not slopes[0][dead].any(), "relu passes nothing below 0"


@each_layer
def test_it_takes_the_way_with_fewer_multiplications(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, _ = wrapped(name)
    layer.svdiff_shift["default"].requires_grad_(True)
    made: list[Tensor] = []
    shifted = layer._shifted

    def make(*sources: Tensor) -> Tensor:
        made.append(shifted(*sources))
        return made[-1]

    monkeypatch.setattr(layer, "_shifted", make)
    layer(x)
    assert (not made) == LAYERS[name][2]


def test_a_base_weight_that_learns_gets_its_gradient() -> None:
    layer, x, slope = wrapped("convolution")
    weight = layer.base_layer.weight.requires_grad_(True)
    (ours,) = torch.autograd.grad(layer(x), weight, slope)
    (expected,) = torch.autograd.grad(layer.base_layer(x), weight, slope)
    torch.testing.assert_close(ours, expected)


def test_a_weight_kept_under_autocast_is_exact_outside() -> None:
    layer, x, _ = wrapped("convolution")
    drawn_shift(layer)
    expected = layer(x)
    other = copy.deepcopy(layer)  # a copy has kept nothing
    with torch.autocast("cpu", dtype=torch.bfloat16):
        other(x)
    assert torch.equal(other(x), expected)
