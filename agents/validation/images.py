"""Real images for the parts, and what is done to planted copies."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional

from agents.validation.settings import ValidateSettings
from envs.datasets import NEAR_DUPLICATE_RADIUS, prepare_dataset
from envs.datasets.base import ImageSet, SplitDataset
from envs.seeding import torch_generator


def draw(settings: ValidateSettings, env: str, *, train: int, heldout: int, test: int = 0) -> SplitDataset:
    """Disjoint sets of a data set, as a training draws them.

    Raises:
        InputError: If the data set is missing or too small.
    """
    return prepare_dataset(
        env,
        root=Path(settings.data.root) if settings.data.root else None,
        size=settings.size,
        train=train,
        heldout=heldout,
        test=test,
        seed=settings.seed,
        radius=NEAR_DUPLICATE_RADIUS,
        options=settings.options,
    )


def as_tensor(images: NDArray[np.uint8]) -> Tensor:
    """``(n, h, w, 3)`` to ``(n, 3, h, w)``, still uint8."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def one_each(images: ImageSet, pairs: tuple[tuple[str, str], ...]) -> Tensor:
    """The first image of each patient, and of near-duplicates (pairs of ids) the first: exchangeable images."""
    twins: dict[str, set[str]] = {}
    for first, second in pairs:
        twins.setdefault(first, set()).add(second)
        twins.setdefault(second, set()).add(first)
    patients, kept, rows = set[str](), set[str](), []
    for row, (name, patient) in enumerate(zip(images.ids, images.groups, strict=True)):
        if patient not in patients and not twins.get(name, set()) & kept:
            rows.append(row)
            kept.add(name)
        patients.add(patient)
    return as_tensor(images.images[rows])


def noisy(images: Tensor, sd: float, seed: int) -> Tensor:
    """Gaussian noise of that standard deviation, in grey levels of 255."""
    noise = torch.randn(images.shape, generator=torch_generator(seed, "planted noise"))
    return (images + sd * noise).round().clamp(0, 255).to(torch.uint8)


def shifted(images: Tensor, right: int, down: int = 0) -> Tensor:
    """Moved by that many pixels; the edge is repeated."""
    padded = functional.pad(images.float(), (right, 0, down, 0), mode="replicate")
    return padded[..., : images.shape[-2], : images.shape[-1]].to(torch.uint8)


def brighter(images: Tensor, levels: int) -> Tensor:
    """By that many grey levels of 255."""
    return (images.int() + levels).clamp(0, 255).to(torch.uint8)


def resaved(images: Tensor, quality: int) -> Tensor:
    """As JPEG of that quality, in memory."""

    def through(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _each(images, through)


def blurred(images: Tensor, sd: float) -> Tensor:
    """By Pillow's Gaussian blur of that standard deviation in pixels."""
    return _each(images, lambda image: image.filter(ImageFilter.GaussianBlur(sd)))


def _each(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    changed = [np.array(change(Image.fromarray(image.permute(1, 2, 0).numpy()))) for image in images]
    return as_tensor(np.stack(changed))


PERTURBATIONS: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "untouched": lambda images, seed: images,
    "flipped": lambda images, seed: images.flip(-1),
    "noise, sd 4": lambda images, seed: noisy(images, 4, seed),
    "noise, sd 8": lambda images, seed: noisy(images, 8, seed),
    "noise, sd 16": lambda images, seed: noisy(images, 16, seed),
    "shifted 2 px right": lambda images, seed: shifted(images, 2),
    "shifted 2 px right and down": lambda images, seed: shifted(images, 2, 2),
    "brighter by 10": lambda images, seed: brighter(images, 10),
    "JPEG, quality 50": lambda images, seed: resaved(images, 50),
    "blurred, sd 1 px": lambda images, seed: blurred(images, 1),
}
"""What is done to training images before they are planted, given a seed; grey levels of 255."""
