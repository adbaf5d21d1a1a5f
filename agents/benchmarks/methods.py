"""Adaptation methods against full fine-tuning, and SV-DIFF against the plain model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D
from torch import Tensor, nn

from agents.benchmarks.base import Finding, Goal, paired
from agents.settings import TrainSettings
from agents.workbench import Workbench, prepare_backbone
from envs.backbones.norms import guard_group_norms
from envs.groups import LayerGroup, find_groups
from envs.methods import METHODS, Attachment, find_method
from envs.seeding import torch_generator

_BATCH, _STEPS, _SWITCHES = 8, 3, 100
# The second block of Stable Diffusion 1.5's UNet, at the feature maps of a 256 px image.
_BLOCK = {
    "in_channels": 320,
    "out_channels": 640,
    "temb_channels": 1280,
    "num_layers": 2,
    "cross_attention_dim": 768,
    "num_attention_heads": 8,
    "downsample_padding": 1,
}
_SIDE, _TOKENS = 16, 77


@dataclass(frozen=True)
class _Model:
    """A denoiser, or a block of one.

    Attributes:
        module: Plain and frozen.
        groups: A partition of its modules.
        output: What such a module makes of a fixed batch.
    """

    module: nn.Module
    groups: tuple[LayerGroup, ...]
    output: Callable[[nn.Module], Tensor]

    def with_method(self, name: str) -> tuple[nn.Module, Attachment]:
        """A copy of its own with a method attached."""
        module = copy.deepcopy(self.module)
        return module, find_method(name)(module, self.groups, calibration=lambda: [self.loss(module)])

    def loss(self, module: nn.Module) -> Tensor:
        """Something to differentiate."""
        return self.output(module).square().mean()


def bench_methods(settings: TrainSettings, bench: Workbench, runs: int) -> Finding:
    """Steps of every method / full's, SV-DIFF's passes / the plain model's, switching masks / loading the backbone.

    A step is forward, backward and AdamW on a batch of 8 with every group on. SV-DIFF's forward pass is without
    gradients; its forward and backward pass is held against that of the plain model with all its weights learning.

    ``block`` is the second block of Stable Diffusion 1.5's UNet, 320 to 640 channels, at the feature maps of a 256 px
    image and with random weights, whose decompositions are kept like any others. At 512 px a weight is applied at four
    times the positions, and what SV-DIFF does once a weight counts for less. Where it counts for most, in the deepest
    blocks with 1280 channels at 8 x 8, layers apply U and V^T instead and compute no gradient of a weight.
    """
    denoiser, block = _denoiser(settings), _block()
    full = _step(denoiser, "full")
    figures = {f"{name}_step_ratio": paired(_step(denoiser, name), full, runs)[2] for name in METHODS if name != "full"}
    limits = dict.fromkeys(figures, 1.25) | {"attention_step_ratio": 1.0}
    for place, model in (("backbone", denoiser), ("block", block)):
        ratios = _svdiff_ratios(model, runs, 1 if model is block else _STEPS)
        passes = {f"svdiff_{what}_ratio_{place}": ratio for what, ratio in ratios.items()}
        limits |= dict.fromkeys(passes, 1.15)
        figures |= passes
    switch, load, _ = paired(_switching(denoiser), lambda: prepare_backbone(settings.backbone, settings.env), runs)
    figures |= {"switch_masks_ms": 1e3 * switch / _SWITCHES, "load_backbone_ms": 1e3 * load}
    return Finding(
        figures,
        tuple(Goal(name, limit) for name, limit in limits.items()),
        runs,
        {"batch_size": _BATCH, "block": {**_BLOCK, "side": _SIDE}, "threads": torch.get_num_threads()},
    )


def _denoiser(settings: TrainSettings) -> _Model:
    backbone, _ = prepare_backbone(settings.backbone, settings.env)
    noisy = torch.randn(_BATCH, *backbone.latent_shape, generator=torch_generator(0, "latents"))
    t = torch.linspace(0, backbone.timesteps - 1, _BATCH).long()
    states = backbone.encode_captions([f"image {i}" for i in range(_BATCH)])
    groups = find_groups(backbone.denoiser, settings.groups.name)
    return _Model(backbone.denoiser, groups, lambda module: module(noisy, t, states, return_dict=False)[0])


def _block() -> _Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = CrossAttnDownBlock2D(**_BLOCK).eval().requires_grad_(False)
        features = torch.randn(_BATCH, _BLOCK["in_channels"], _SIDE, _SIDE)
        embedding = torch.randn(_BATCH, _BLOCK["temb_channels"])
        states = torch.randn(_BATCH, _TOKENS, _BLOCK["cross_attention_dim"])
    guard_group_norms(block)
    everything = LayerGroup("block", ("",), "down", 0.0, 1.0, 640, sum(p.numel() for p in block.parameters()))
    return _Model(block, (everything,), lambda module: module(features, embedding, states)[0])


def _step(model: _Model, method: str) -> Callable[[], None]:
    """Trains a few steps."""
    module, attachment = model.with_method(method)
    parameters = list(attachment.selected((True,) * len(model.groups)).values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters)

    def steps() -> None:
        for _ in range(_STEPS):
            model.loss(module).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return steps


def _svdiff_ratios(model: _Model, runs: int, passes: int) -> dict[str, float]:
    """SV-DIFF / plain, of the forward pass and of both passes, several timed together."""
    (plain, weights), (ours, shifts) = model.with_method("full"), model.with_method("svdiff")
    every = (True,) * len(model.groups)
    with torch.no_grad():
        for parameter in shifts.selected(every).values():
            parameter.add_(0.01)  # a shift of 0 would cost no product

    def forward(module: nn.Module) -> Callable[[], None]:
        @torch.no_grad()
        def act() -> None:
            for _ in range(passes):
                model.output(module)

        return act

    def both(module: nn.Module, attachment: Attachment) -> Callable[[], None]:
        parameters = list(attachment.selected(every).values())
        for parameter in parameters:
            parameter.requires_grad_(True)

        def act() -> None:
            for _ in range(passes):
                torch.autograd.grad(model.loss(module), parameters)

        return act

    return {
        "forward": paired(forward(ours), forward(plain), runs)[2],
        "both": paired(both(ours, shifts), both(plain, weights), runs)[2],
    }


def _switching(model: _Model) -> Callable[[], None]:
    """Selects masks of SV-DIFF and applies them as a fine-tune does."""
    module, attachment = model.with_method("svdiff")
    draws = torch.rand(_SWITCHES, len(model.groups), generator=torch_generator(0, "masks")) < 0.5
    masks = [tuple(row) for row in draws.tolist()]

    def switch() -> None:
        for mask in masks:
            module.requires_grad_(False)
            for parameter in attachment.selected(mask).values():
                parameter.requires_grad_(True)

    return switch
