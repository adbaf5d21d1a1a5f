"""Augmentation: besides each image, altered versions of it are trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from envs.datasets.base import ImageSet
from envs.mitigations.base import Mitigation, Stage, within
from envs.seeding import torch_generator


@dataclass(frozen=True)
class Versions(ImageSet):
    """Images of which some are versions of others.

    Attributes:
        origins: Which image each is a version of, int64 ``(n,)``, numbered from 0 in the order of their first versions.
    """

    origins: NDArray[np.int64]


def origins_of(images: ImageSet) -> NDArray[np.int64]:
    """Which image each is a version of, int64 ``(n,)``: itself, unless the set says otherwise."""
    return images.origins if isinstance(images, Versions) else np.arange(len(images), dtype=np.int64)


@dataclass(frozen=True)
class Augmentation(Mitigation):
    """Each image is joined by versions mirrored, shifted, rotated, scaled, brighter or of another contrast.

    Augmentation is reported to lower memorization in medical images (Dar et al., Nature BME 2025). The versions are
    drawn once a task. In training loops that alter images anew at each step (Ho et al., arXiv 2006.11239, mirror every
    other time; Karras et al., arXiv 2206.00364, alter one time in eight) the image as it is remains among what is
    drawn; so it does here, as the first of its versions. All versions are equally frequent, and the steps of a
    fine-tune are as many as without: each image is seen ``1 + copies`` times more rarely as it is.

    What is drawn of each alteration is uniform between plus and minus its setting; all geometry is one bicubic
    resampling, and beyond an image's border is what lies on the border. As in all augmentation that the denoiser is not
    told of, what it generates may be altered in the same ways.

    The figure ``augment.added`` is the number of versions that joined.

    Attributes:
        copies: Altered versions of each image; 0 for none.
        mirror: Whether each version is mirrored, left and right, one time in two. No chest is symmetric: mirrored, its
            heart lies on the right, its side marker is reversed, and a caption's left and right are wrong.
        shift: Pixels across and down, whole ones, so that a shift alone blurs nothing.
        rotate: Degrees.
        scale: Natural logarithm of the factor: 0.05 for about 5 % larger or smaller.
        brightness: Share of the range from black to white that is added.
        contrast: Natural logarithm of the factor by which values depart from the image's mean.
    """

    copies: int = 3
    mirror: bool = False
    shift: int = 2
    rotate: float = 5.0
    scale: float = 0.05
    brightness: float = 0.05
    contrast: float = 0.1
    name: ClassVar[str] = "augment"
    stage: ClassVar[Stage] = Stage.DATA
    source: ClassVar[str] = "Dar et al., Nature Biomedical Engineering 2025, arXiv 2402.01054"
    excludes: ClassVar[Mapping[str, str]] = {
        "dp_sgd": "its guarantee is for one training image, and augmentation trains on several of each"
    }

    def __post_init__(self) -> None:
        for setting, most in (("copies", 1000), ("shift", 1000)):
            value = getattr(self, setting)
            if not within(value, 0, most) or not isinstance(value, int):
                raise self.refused(setting, f"set it to a whole number of 0 to {most}")
        if not isinstance(self.mirror, bool):
            raise self.refused("mirror", "set it to true or false")
        for setting, most in (("rotate", 180), ("scale", 1), ("brightness", 1), ("contrast", 1)):
            if not within(getattr(self, setting), 0.0, most):
                raise self.refused(setting, f"set it to 0 to {most}")
        alterations = [field.name for field in fields(self) if field.name != "copies"]
        if self.copies and not any(getattr(self, name) for name in alterations):
            raise self.refused("copies", f"set it to 0, or one of {', '.join(alterations)} above 0")

    def prepared(self, images: ImageSet, seed: int) -> ImageSet:
        """See `Mitigation.prepared`: all images as they are, then a version of each, and so on."""
        if not self.copies:
            return images
        pixels, ids = [images.images], list(images.ids)
        for copy in range(1, self.copies + 1):
            # A stream a version: with more of them, those that there were stay the same.
            generator = torch_generator(seed, "augment", copy)
            pixels.append(np.stack([self._altered(image, generator) for image in images.images]))
            ids.extend(f"{id} version {copy}" for id in images.ids)
        origins = np.tile(np.arange(len(images), dtype=np.int64), self.copies + 1)
        tiled = images.take(origins)
        return Versions(np.concatenate(pixels), tuple(ids), tiled.groups, tiled.captions, tiled.labels, origins)

    def compared(self, before: ImageSet, after: ImageSet) -> Mapping[str, float]:
        """See `Mitigation.compared`."""
        return {"augment.added": float(len(after) - len(before))}

    def _altered(self, image: NDArray[np.uint8], generator: torch.Generator) -> NDArray[np.uint8]:
        """A version of uint8 ``(height, width, 3)``; how many numbers it draws depends on no setting."""
        flip, *drawn = (2 * torch.rand(7, generator=generator, dtype=torch.float64) - 1).tolist()
        across, down, angle, size, light, spread = drawn
        if self.mirror and flip < 0:
            image = image[:, ::-1]
        moved = [math.floor((self.shift + 0.5) * part + 0.5) for part in (across, down)]
        placed = _placed(image, moved, math.radians(self.rotate * angle), math.exp(self.scale * size))
        if not (self.brightness or self.contrast):
            return placed
        mean = placed.mean()
        toned = mean + math.exp(self.contrast * spread) * (placed - mean) + 255 * self.brightness * light
        return np.asarray(toned.round().clip(0, 255), dtype=np.uint8)


def _placed(image: NDArray[np.uint8], shift: Sequence[int], angle: float, scale: float) -> NDArray[np.uint8]:
    """The image scaled and turned about its centre, then shifted; ``angle`` in radians, counterclockwise.

    Args:
        image: uint8 ``(height, width, 3)``.
        shift: Pixels to the right and down.
        angle: See above.
        scale: Above 1 is larger.
    """
    height, width = image.shape[:2]
    # As far as a corner may come from, and the two pixels that bicubic resampling looks at around it.
    reach = (math.hypot(height, width) / 2 + math.hypot(*shift)) / scale
    margin = max(math.ceil(reach - min(height, width) / 2), 0) + 2
    wide = Image.fromarray(np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge"))
    # Pillow asks for the way back: from a place in the result to where in the image its value lies.
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    x, y = width / 2, height / 2
    back_x, back_y = x + shift[0], y + shift[1]
    way = (
        *(cosine, -sine, margin + x - cosine * back_x + sine * back_y),
        *(sine, cosine, margin + y - sine * back_x - cosine * back_y),
    )
    found = wide.transform((width, height), Image.Transform.AFFINE, way, Image.Resampling.BICUBIC)
    return np.asarray(found)
