"""The scheme ``block_kinds``: of each block, the layers of each kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from envs.groups.base import KINDS, LayerGroup, layer_group, layer_kinds
from envs.groups.blocks import blocks


def block_kinds(unet: nn.Module) -> tuple[LayerGroup, ...]:
    """Each group of `blocks`, taken apart into its attention, feed-forward, residual and normalisation layers.

    See `envs.groups.base.layer_kinds` for what counts as which. A kind that a block does not have makes no toggle. The
    input convolution and the embeddings stay one group.
    """
    kinds = layer_kinds(unet)
    groups: list[LayerGroup] = []
    for block in blocks(unet):
        groups.extend([block] if block.part == "input" else _taken_apart(unet, block, kinds))
    return tuple(groups)


def _taken_apart(unet: nn.Module, block: LayerGroup, kinds: Mapping[str, str]) -> Iterator[LayerGroup]:
    modules: dict[str, list[str]] = {kind: [] for kind in KINDS}
    excluded: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for root in block.modules:
        for name, _ in unet.get_submodule(root).named_modules(prefix=root):
            kind, around = kinds[name], kinds[name.rpartition(".")[0]]
            if name == root:
                modules[kind].append(name)
            elif kind != around:
                modules[kind].append(name)
                excluded[around].append(name)
    for kind in KINDS:
        group = layer_group(
            unet,
            f"{block.name} {kind.replace('_', '-')}",
            tuple(modules[kind]),
            block.part,
            depth=block.depth,
            resolution=block.resolution,
            channels=block.channels,
            excluded=tuple(excluded[kind]),
        )
        if group.parameters:
            yield group
