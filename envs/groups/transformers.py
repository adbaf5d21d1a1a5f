"""The schemes ``transformers`` and ``memcontrol13``: the blocks of each transformer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from envs.groups.base import LayerGroup, layer_group, most_channels
from rewards.errors import InputError


def transformers(unet: nn.Module) -> tuple[LayerGroup, ...]:
    """The blocks of each transformer, one toggle a transformer, and everything else as one more.

    Stable Diffusion 1.5 has 16 (MemControl's space for attention tuning, arXiv 2405.19458, where the rest always
    learns; here it is a toggle, so that off is off).
    """
    return _per_transformer(unet, _transformer_models(unet))


def memcontrol13(unet: nn.Module) -> tuple[LayerGroup, ...]:
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
    drafts = [("rest", rest, "input", 0, most_channels(*(unet.get_submodule(name) for name in rest)))]
    for (name, transformer), module in zip(chosen, inside, strict=True):
        part, _, place = name.partition("_block")
        index = int(place.split(".")[1]) if part != "mid" else 0
        level = {"down": index, "mid": levels - 1, "up": levels - 1 - index}[part]
        drafts.append((name, (module,), part, level, int(transformer.in_channels)))
    return tuple(
        layer_group(unet, name, modules, part, depth=i / (len(drafts) - 1), resolution=0.5**level, channels=channels)
        for i, (name, modules, part, level, channels) in enumerate(drafts)
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
