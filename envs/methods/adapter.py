"""Small convolutional adapters with branches of several scales, after Med-Tuning (arXiv 2304.10880)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from envs.groups import LayerGroup
from envs.methods.base import Attachment, Calibration, Method, added_parameters, adding, count_setting, nothing_to_train
from rewards.errors import InputError

_KERNELS = (1, 3, 5)
_CHILD = "multi_scale_adapter"


class MultiScaleAdapter(nn.Module):
    """Down to a few channels, depthwise convolutions of several sizes side by side, and up again.

    The intra-stage part of Med-Adapter; its Fourier branch and the exchange between stages are left out. The way up
    starts at zero, so that nothing changes at first.

    Args:
        channels: Of the feature maps.
        width: Channels in between.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, width, 1)
        self.scales = nn.ModuleList(nn.Conv2d(width, width, k, padding=k // 2, groups=width) for k in _KERNELS)
        self.up = nn.Conv2d(width, channels, 1)
        nn.init.zeros_(self.up.weight)
        assert self.up.bias is not None
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """What to add to feature maps ``(n, c, h, w)``."""
        hidden = F.gelu(self.down(x))
        mixed = torch.stack([scale(hidden) for scale in self.scales]).sum(dim=0)
        output: Tensor = self.up(F.gelu(mixed))
        return output


@dataclass(frozen=True)
class Adapter(Method):
    """An adapter after the input convolution, each residual block and each transformer.

    Attributes:
        width: Channels inside an adapter.
    """

    width: int = 8
    name: ClassVar[str] = "adapter"

    def __post_init__(self) -> None:
        count_setting("width", self.width)

    @property
    def settings(self) -> Mapping[str, Any]:
        """See `Method.settings`."""
        return asdict(self)

    def __call__(
        self,
        denoiser: nn.Module,
        groups: Sequence[LayerGroup],
        *,
        calibration: Calibration | None = None,
        seed: int = 0,
    ) -> Attachment:
        """See `Method.__call__`; the way down is drawn from the seed."""
        hosts = list(_hosts(denoiser))
        if not hosts:
            raise nothing_to_train(self.name, denoiser)
        narrowest = min(channels for _, channels in hosts)
        if self.width > narrowest:
            raise InputError(
                f"method.options.width={self.width} is wider than the denoiser's {narrowest} channels",
                f"set it to {narrowest} at most",
            )
        like = next(denoiser.parameters())
        with adding(denoiser, seed) as before:
            for host, channels in hosts:
                host.add_module(_CHILD, MultiScaleAdapter(channels, self.width).to(like.device, like.dtype))
                host.register_forward_hook(_add_adapter)
        return Attachment(added_parameters(denoiser, groups, before))


def _hosts(denoiser: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    for name, module in denoiser.named_modules():
        if isinstance(module, ResnetBlock2D) or (name == "conv_in" and isinstance(module, nn.Conv2d)):
            yield module, module.out_channels
        elif isinstance(module, Transformer2DModel):
            yield module, module.in_channels


def _add_adapter(host: nn.Module, inputs: Any, output: Any) -> Any:
    """A forward hook: it finds the adapter in the module, so that copies of the denoiser use their own."""
    adapter = host.get_submodule(_CHILD)
    if isinstance(output, Tensor):
        return output + adapter(output)
    if isinstance(output, tuple):
        return output[0] + adapter(output[0]), *output[1:]
    return type(output)(sample=output.sample + adapter(output.sample))
