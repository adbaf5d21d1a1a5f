"""Low-rank updates beside every linear and convolutional layer of a group that is on (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from envs.groups import LayerGroup
from envs.methods.base import Attachment, Calibration, Method, attach_peft, count_setting, nothing_to_train
from envs.methods.materialised import train_materialised
from rewards.errors import InputError


@dataclass(frozen=True)
class LoRA(Method):
    """peft's own LoRA, on ``Linear`` and ``Conv2d``: W + B A with B = 0 at the start; see `low_rank_config`.

    With ``ranks`` each group has one toggle for each entry, an adapter of that rank. Adapters add up, so the rank of a
    group is the sum of what is on: with ``[1, 2, 4]`` any from 0 to 7. So ranks and places are searched together, which
    is the space of Parameterized Memory Injection (arXiv 2404.03565).

    Attributes:
        rank: Of the updates, unless ``ranks`` are given.
        ranks: One toggle each.
    """

    rank: int = 4
    ranks: Sequence[int] | None = None
    name: ClassVar[str] = "lora"

    def __post_init__(self) -> None:
        count_setting("rank", self.rank)
        if self.ranks is None:
            return
        if isinstance(self.ranks, str) or not isinstance(self.ranks, Sequence) or not self.ranks:
            raise InputError(f"method.options.ranks={self.ranks}", "list one rank or more, for example [1,2,4]")
        for i, rank in enumerate(self.ranks):
            count_setting(f"ranks[{i}]", rank)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the updates: tasks older than ``ranks`` keep their ids."""
        return {"rank": self.rank} if self.ranks is None else {"ranks": list(self.ranks)}

    def toggles(self, groups: Sequence[LayerGroup]) -> tuple[LayerGroup, ...]:
        """Of each group one for each of ``ranks``: ``down_blocks.0 rank 4``."""
        if self.ranks is None:
            return tuple(groups)
        names = [name.replace("_", " ") for name, _ in self._adapters()]
        return tuple(replace(group, name=f"{group.name} {name}") for group in groups for name in names)

    def __call__(
        self,
        denoiser: nn.Module,
        groups: Sequence[LayerGroup],
        *,
        calibration: Calibration | None = None,
        seed: int = 0,
    ) -> Attachment:
        """See `Method.__call__`; A is drawn from the seed."""
        if self.ranks is None:
            configs = {"default": low_rank_config(denoiser, self.rank, self.name)}
        else:
            configs = {
                name: low_rank_config(denoiser, rank, self.name, setting=f"ranks[{i}]")
                for i, (name, rank) in enumerate(self._adapters())
            }
        return attach_peft(denoiser, groups, configs, seed)

    def _adapters(self) -> list[tuple[str, int]]:
        """Names and ranks; of equal ranks all but the first are numbered."""
        ranks = list(self.ranks or ())
        counts = [ranks[: i + 1].count(rank) for i, rank in enumerate(ranks)]
        return [(f"rank_{r}" if n == 1 else f"rank_{r}_no_{n}", r) for r, n in zip(ranks, counts, strict=True)]


def low_rank_config(
    denoiser: nn.Module, rank: int, method: str, *, setting: str = "rank", use_dora: bool = False
) -> LoraConfig:
    """An update of every ``Linear`` and ``Conv2d``.

    A layer whose matrix (a convolution's is out x in*k*k) has a smaller rank gets an update of that rank. The update is
    not scaled (alpha = rank), so that a learning rate means the same at every rank.

    Args:
        denoiser: Without a method yet.
        rank: Of the updates.
        method: Its name, for errors.
        setting: The rank's, for errors.
        use_dora: See peft.

    Raises:
        InputError: If there is no such layer, or the rank is more than that of any of their matrices.
    """
    most = {
        name: min(module.weight.flatten(1).shape)
        for name, module in denoiser.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    if not most:
        raise nothing_to_train(method, denoiser)
    if rank > max(most.values()):
        raise InputError(
            f"method.options.{setting}={rank} is more than any matrix of the denoiser has",
            f"set it to {max(most.values())} at most",
        )
    smaller = {name: full for name, full in most.items() if full < rank}
    return train_materialised(
        LoraConfig(
            r=rank,
            lora_alpha=rank,
            rank_pattern=dict(smaller),
            alpha_pattern=dict(smaller),
            target_modules=list(most),
            use_dora=use_dora,
        )
    )


@torch.no_grad()
def fold_adapters(model: PeftModel) -> None:
    """Replaces active LoRA adapters by one, ``default``, of the sum of their ranks, which computes the same.

    B1 A1 + B2 A2 is [B1 B2] [A1; A2], of a convolution too. Updates that are zero, of toggles that were off, are left
    out. Done before saving, plain peft loads the choice as any LoRA; what an attachment selected is gone then. (peft's
    own ``add_weighted_adapter`` pads every layer to one rank, also where nothing was learned.)

    Raises:
        ValueError: If every update is zero: there is nothing to save.
    """
    before = list(model.peft_config)
    if before == ["default"]:
        return
    denoiser: Any = model.base_model.model  # peft leaves it to torch's Module, whose attributes may be anything
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for name, layer in denoiser.named_modules():
        if isinstance(layer, LoraLayer):
            a: dict[str, Any] = dict(layer.lora_A.items())
            b: dict[str, Any] = dict(layer.lora_B.items())
            learned = [key for key in model.active_adapters if b[key].weight.any()]
            if learned:
                scaled = [a[key].weight * layer.scaling[key] for key in learned]
                factors[name] = torch.cat(scaled), torch.cat([b[key].weight for key in learned], dim=1)
    if not factors:
        raise ValueError("none of the adapters has learned anything")
    ranks = {name: len(down) for name, (down, _) in factors.items()}
    most = max(ranks.values())
    config = LoraConfig(
        r=most,
        lora_alpha=most,
        rank_pattern=dict(ranks),
        alpha_pattern=dict(ranks),
        target_modules=list(ranks),
    )
    model.add_adapter("default", config)
    for name, (down, up) in factors.items():
        denoiser.get_parameter(f"{name}.lora_A.default.weight").copy_(down)
        denoiser.get_parameter(f"{name}.lora_B.default.weight").copy_(up)
    model.set_adapter("default")
    for name in before:
        model.delete_adapter(name)
    model.requires_grad_(False)
