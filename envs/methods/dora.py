"""LoRA that learns the magnitude of each output by itself (DoRA, arXiv 2402.09353)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import nn

from envs.groups import LayerGroup
from envs.methods.base import Attachment, Calibration, Method, attach_peft, count_setting
from envs.methods.lora import low_rank_config


@dataclass(frozen=True)
class DoRA(Method):
    """peft's own DoRA, on ``Linear`` and ``Conv2d``; see `low_rank_config`.

    It normalises W + B A, so that adapters do not add up: there are no ``ranks`` to search as with `LoRA`.

    Attributes:
        rank: Of the updates.
    """

    rank: int = 4
    name: ClassVar[str] = "dora"

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
        config = low_rank_config(denoiser, self.rank, self.name, use_dora=True)
        return attach_peft(denoiser, groups, {"default": config}, seed)
