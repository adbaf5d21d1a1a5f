"""Low-rank updates beside every linear and convolutional layer of a group that is on (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from peft import LoraConfig
from torch import nn

from envs.groups import LayerGroup
from envs.methods.base import Attachment, Calibration, attach_peft, count_setting, nothing_to_train
from rewards.errors import InputError


@dataclass(frozen=True)
class LoRA:
    """peft's own LoRA, on ``Linear`` and ``Conv2d``: W + B A with B = 0 at the start.

    A layer whose matrix (a convolution's is out x in*k*k) has a smaller rank gets an update of that rank. The update is
    not scaled (alpha = rank), so that a learning rate means the same at every rank.

    Attributes:
        rank: Of the updates.
    """

    rank: int = 4
    name: ClassVar[str] = "lora"
    weight_decomposed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        count_setting("rank", self.rank)

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
        """See `Method.__call__`; A is drawn from the seed."""
        most = {
            name: min(module.weight.flatten(1).shape)
            for name, module in denoiser.named_modules()
            if isinstance(module, (nn.Linear, nn.Conv2d))
        }
        if not most:
            raise nothing_to_train(self.name, denoiser)
        if self.rank > max(most.values()):
            raise InputError(
                f"method.options.rank={self.rank} is more than any matrix of the denoiser has",
                f"set it to {max(most.values())} at most",
            )
        smaller = {name: rank for name, rank in most.items() if rank < self.rank}
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.rank,
            rank_pattern=dict(smaller),
            alpha_pattern=dict(smaller),
            target_modules=list(most),
            use_dora=self.weight_decomposed,
        )
        return attach_peft(denoiser, groups, config, seed)
