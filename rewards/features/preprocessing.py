"""How images are prepared for a network that does not say so itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rewards.errors import InputError
from rewards.features.images import resized

_FORM = "write ?size=224&mean=0.485,0.456,0.406&std=0.229,0.224,0.225, or leave out what stays so"
_LARGEST = 4096


@dataclass(frozen=True)
class Preprocessing:
    """uint8 ``(n, 3, h, w)`` to float32 ``(n, 3, size, size)``: resized, scaled to [0, 1], minus mean, over deviation.

    Attributes:
        size: Height and width in pixels, 1 to 4096; bilinear with antialiasing, the aspect ratio is not kept.
        mean: Of red, green and blue in [0, 1]; ImageNet's unless said.
        std: Of the same, above 0.
    """

    size: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @classmethod
    def parse(cls, options: str, name: str) -> Preprocessing:
        """Of ``size=224&mean=0.5,0.5,0.5&std=0.5,0.5,0.5``, any of them left out.

        Args:
            options: What follows the question mark.
            name: Of the embedding, for the error.

        Raises:
            InputError: If an option is unknown, given twice, or out of range.
        """
        found: dict[str, str] = {}
        for option in filter(None, options.split("&")):
            key, _, value = option.partition("=")
            if key not in {field.name for field in fields(cls)} or key in found:
                raise InputError(f"embedding {name}: option {option!r} is unknown or repeated", _FORM)
            found[key] = value
        try:
            chosen = cls(
                size=int(found.get("size", cls.size)),
                mean=_numbers(found["mean"]) if "mean" in found else cls.mean,
                std=_numbers(found["std"]) if "std" in found else cls.std,
            )
        except ValueError as error:
            raise InputError(f"embedding {name}: {error}", _FORM) from error
        if not 1 <= chosen.size <= _LARGEST or min(chosen.std) <= 0:
            raise InputError(f"embedding {name}: size or std is out of range", _FORM)
        return chosen

    def __call__(self, images: Tensor) -> Tensor:
        """See the class."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (resized(images, self.size) / 255 - mean) / std


def _numbers(text: str) -> tuple[float, ...]:
    numbers = tuple(float(part) for part in text.split(","))
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{text!r} is not three finite numbers")
    return numbers
