"""Finds the layer groups of a diffusers UNet: the toggles of a selection.

A scheme is a partition: every parameter of the denoiser lies in exactly one group, so that "all on" is full fine-tuning
and "all off" is the base model. Groups are listed in the order in which the forward pass meets them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from numpy.typing import NDArray
from torch import nn

from rewards.errors import InputError

KINDS = ("input", "down", "mid", "up")
"""Where in a UNet a group lies."""

GROUP_FEATURES = ("depth", *(f"kind_{kind}" for kind in KINDS), "resolution", "log_channels", "log_parameters", "share")
"""Names of the columns of `feature_matrix`."""


@dataclass(frozen=True)
class LayerGroup:
    """One toggle: which modules of the denoiser it covers, and what a policy may know about it.

    Attributes:
        name: Unique in its scheme.
        modules: Dotted names of the denoiser's modules covered, with all their descendants.
        kind: One of `KINDS`.
        depth: Position in the forward pass, 0 first to 1 last.
        resolution: Height of its feature maps as a share of the denoiser's input, in (0, 1].
        channels: The most that a convolution of its puts out; of a transformer's blocks, the transformer's.
        parameters: Numbers in its modules, whether or not a method can train them.
    """

    name: str
    modules: tuple[str, ...]
    kind: str
    depth: float
    resolution: float
    channels: int
    parameters: int

    def parameters_in(self, denoiser: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """``(dotted name in the denoiser, parameter)`` of everything covered."""
        for prefix in self.modules:
            yield from denoiser.get_submodule(prefix).named_parameters(prefix=prefix)


def find_groups(denoiser: nn.Module, scheme: str) -> tuple[LayerGroup, ...]:
    """The groups of a scheme in forward order.

    Args:
        denoiser: A diffusers ``UNet2DConditionModel`` or ``UNet2DModel``.
        scheme: A name in `SCHEMES`.

    Raises:
        InputError: If the scheme is unknown or the denoiser has no layers of the kind that it groups.
    """
    if scheme not in SCHEMES:
        raise InputError(f"groups={scheme} is no group scheme", f"choose among {', '.join(sorted(SCHEMES))}")
    if not all(hasattr(denoiser, part) for part in ("conv_in", "down_blocks", "up_blocks", "conv_out")):
        raise InputError(f"a {type(denoiser).__name__} has no UNet blocks", "use a pipeline with a diffusers UNet")
    groups = SCHEMES[scheme](denoiser)
    covered = sum(group.parameters for group in groups)
    total = sum(parameter.numel() for parameter in denoiser.parameters())
    if covered != total:
        raise ValueError(f"scheme {scheme} covers {covered} of {total} parameters of {type(denoiser).__name__}")
    return groups


def feature_matrix(groups: Sequence[LayerGroup]) -> NDArray[np.float32]:
    """One row of `GROUP_FEATURES` a group; logarithms are scaled to stay within about [0, 1]."""
    total = sum(group.parameters for group in groups)
    rows = [
        (
            group.depth,
            *(float(group.kind == kind) for kind in KINDS),
            group.resolution,
            np.log10(group.channels) / 4,
            np.log10(max(group.parameters, 1)) / 9,
            group.parameters / total,
        )
        for group in groups
    ]
    return np.asarray(rows, dtype=np.float32)


def _blocks(unet: nn.Module) -> tuple[LayerGroup, ...]:
    """Each block of the UNet. What is too small for a toggle of its own goes with its neighbour in the forward pass.

    The input convolution and the embeddings of time and class make one group; the output convolution belongs to the
    last up block. So a UNet of three levels has 8 toggles, few enough to measure all 256 masks.
    """
    levels = len(list(unet.get_submodule("down_blocks").children()))
    stem = ("conv_in", "time_proj", "time_embedding", "class_embedding", "add_embedding", "encoder_hid_proj")
    drafts = [("input", tuple(name for name in stem if _has(unet, name)), "input", 0)]
    drafts += [(f"down_blocks.{i}", (f"down_blocks.{i}",), "down", i) for i in range(levels)]
    if _has(unet, "mid_block"):
        drafts.append(("mid_block", ("mid_block",), "mid", levels - 1))
    for i in range(levels):
        head = tuple(n for n in ("conv_norm_out", "conv_out") if _has(unet, n)) if i == levels - 1 else ()
        drafts.append((f"up_blocks.{i}", (f"up_blocks.{i}", *head), "up", levels - 1 - i))
    return tuple(
        LayerGroup(
            name=name,
            modules=modules,
            kind=kind,
            depth=i / (len(drafts) - 1),
            resolution=0.5**level,
            channels=_channels(unet.get_submodule(modules[0])),
            parameters=sum(p.numel() for m in modules for p in unet.get_submodule(m).parameters()),
        )
        for i, (name, modules, kind, level) in enumerate(drafts)
    )


def _transformers(unet: nn.Module) -> tuple[LayerGroup, ...]:
    """The blocks of each transformer, one toggle a transformer, and everything else as one more.

    Stable Diffusion 1.5 has 16 (MemControl's space for attention tuning, arXiv 2405.19458, where the rest always
    learns; here it is a toggle, so that off is off).
    """
    return _per_transformer(unet, _transformer_models(unet))


def _memcontrol13(unet: nn.Module) -> tuple[LayerGroup, ...]:
    """The same for the first two transformers of each block: MemControl's 13 toggles for SV-DIFF and DiffFit, and one.

    What its masks leave out, the third transformers of up blocks, is in ``rest`` with everything else.
    """
    return _per_transformer(unet, [pair for pair in _transformer_models(unet) if int(pair[0].rpartition(".")[2]) < 2])


def _transformer_models(unet: nn.Module) -> list[tuple[str, Transformer2DModel]]:
    """In forward order: a UNet registers its up blocks before the one in the middle."""
    found = [(name, module) for name, module in unet.named_modules() if isinstance(module, Transformer2DModel)]
    return sorted(found, key=lambda item: ("down_blocks", "mid_block", "up_blocks").index(item[0].partition(".")[0]))


def _per_transformer(unet: nn.Module, chosen: Sequence[tuple[str, Transformer2DModel]]) -> tuple[LayerGroup, ...]:
    if not chosen:
        raise InputError(f"a {type(unet).__name__} has no transformers", "set groups=blocks")
    levels = len(list(unet.get_submodule("down_blocks").children()))
    inside = tuple(f"{name}.transformer_blocks" for name, _ in chosen)
    rest = tuple(_outside(unet, "", inside))
    drafts = [("rest", rest, "input", 0, _channels(*(unet.get_submodule(name) for name in rest)))]
    for (name, transformer), module in zip(chosen, inside, strict=True):
        part, _, place = name.partition("_block")
        index = int(place.split(".")[1]) if part != "mid" else 0
        level = {"down": index, "mid": levels - 1, "up": levels - 1 - index}[part]
        drafts.append((name, (module,), part, level, int(transformer.in_channels)))
    return tuple(
        LayerGroup(
            name=name,
            modules=modules,
            kind=kind,
            depth=i / (len(drafts) - 1),
            resolution=0.5**level,
            channels=channels,
            parameters=sum(p.numel() for m in modules for p in unet.get_submodule(m).parameters()),
        )
        for i, (name, modules, kind, level, channels) in enumerate(drafts)
    )


def _outside(unet: nn.Module, prefix: str, inside: Sequence[str]) -> Iterator[str]:
    """The largest modules with parameters that hold none of ``inside``."""
    for name, child in unet.get_submodule(prefix).named_children():
        path = f"{prefix}.{name}" if prefix else name
        if path in inside or not any(True for _ in child.parameters()):
            continue
        if any(other.startswith(f"{path}.") for other in inside):
            yield from _outside(unet, path, inside)
        else:
            yield path


def _has(unet: nn.Module, name: str) -> bool:
    return isinstance(getattr(unet, name, None), nn.Module)


def _channels(*modules: nn.Module) -> int:
    return max(m.out_channels for module in modules for m in module.modules() if isinstance(m, nn.Conv2d))


SCHEMES: dict[str, Callable[[nn.Module], tuple[LayerGroup, ...]]] = {
    "blocks": _blocks,
    "transformers": _transformers,
    "memcontrol13": _memcontrol13,
}
"""Every group scheme by name."""
