"""What an image must be before anything is trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from envs.datasets.base import ImageSet, Reject
from rewards.errors import InputError


class UnusableImageError(ValueError):
    """One image that cannot be trained on; its text is the reason a `Reject` gives."""


@dataclass(frozen=True)
class CheckedImages:
    """The images that passed, and those that did not.

    Attributes:
        images: What may be trained on.
        rejects: What may not, with reasons.
        declared: For each image of ``images`` the split that its source puts it in; empty where it says nothing.
    """

    images: ImageSet
    rejects: tuple[Reject, ...]
    declared: tuple[str, ...]


def check_images(
    pixels: NDArray[Any],
    *,
    ids: Sequence[str],
    groups: Sequence[str],
    captions: Sequence[str],
    labels: Sequence[int] | NDArray[np.int64],
    size: int,
    declared: Sequence[str] = (),
    rejects: Sequence[Reject] = (),
) -> CheckedImages:
    """Brings an array of images to uint8 RGB of one size and leaves out what cannot be trained on.

    An image is left out if a value is not finite or not within 0 and 1 (float arrays), if all its pixels are the same,
    or if an earlier image has its id.

    Args:
        pixels: ``(n, height, width)``, ``(n, height, width, 1)`` or ``(n, height, width, 3)``; uint8, or floats in
            [0, 1]. Other than ``size`` x ``size`` is centre-cropped to a square and resized with antialiasing.
        ids: One an image, as are the next three.
        groups: The patient; an empty string stands for one nobody else shares.
        captions: Empty where there is none.
        labels: -1 where unknown.
        size: Height and width wanted.
        declared: The split that the source names for each image; nothing if it names none.
        rejects: What the reading of files has already left out; comes first in the result.

    Raises:
        InputError: If the array as a whole has the wrong shape or type, a column the wrong length, or no image passes.
    """
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    if pixels.ndim != 4 or pixels.shape[-1] not in (1, 3):
        raise InputError(
            f"images have shape {pixels.shape}", "give (n, height, width), with 1 or 3 channels at the end"
        )
    if len(pixels) and min(pixels.shape[1:3]) < size:
        raise InputError(
            f"images of {pixels.shape[2]}x{pixels.shape[1]} pixels are smaller than size={size}", "give larger images"
        )
    declared = declared or [""] * len(pixels)
    for column, values in (("id", ids), ("group", groups), ("text", captions), ("label", labels), ("split", declared)):
        if len(values) != len(pixels):
            raise InputError(f"{len(pixels)} images have {len(values)} values of {column}", "give one an image")

    reasons: dict[int, str] = {}
    if np.issubdtype(pixels.dtype, np.floating):
        for row, image in enumerate(pixels):
            try:
                _refuse_values(image)
            except UnusableImageError as error:
                reasons[row] = str(error)
        usable = np.array([row not in reasons for row in range(len(pixels))])
        pixels = np.rint(np.where(usable[:, None, None, None], pixels, 0) * 255).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise InputError(f"images are of type {pixels.dtype}", "give uint8, or floats in [0, 1]")
    for row in np.flatnonzero((pixels == pixels[:, :1, :1]).all((1, 2, 3))).tolist():
        reasons.setdefault(row, "constant: every pixel is the same")
    seen: set[str] = set()
    for row, name in enumerate(ids):
        if name in seen:
            reasons.setdefault(row, "an earlier image has the same id")
        seen.add(name)

    kept = np.array([row for row in range(len(pixels)) if row not in reasons], dtype=np.int64)
    left_out = (*rejects, *(Reject(ids[row], reasons[row]) for row in sorted(reasons)))
    if not len(kept):
        why = f", the first: {left_out[0].id}: {left_out[0].reason}" if left_out else ""
        raise InputError(f"none of {len(left_out)} images can be used{why}", "give images that differ from each other")
    pixels = np.repeat(pixels[kept], 3, axis=-1) if pixels.shape[-1] == 1 else pixels[kept]
    if pixels.shape[1:3] != (size, size):
        pixels = np.stack([square_rgb(Image.fromarray(image), size) for image in pixels])
    images = ImageSet(
        images=np.ascontiguousarray(pixels),
        ids=tuple(ids[row] for row in kept),
        groups=tuple(groups[row] or ids[row] for row in kept),
        captions=tuple(captions[row] for row in kept),
        labels=np.asarray(labels, dtype=np.int64)[kept],
    )
    return CheckedImages(images, left_out, tuple(declared[row] for row in kept))


def square_rgb(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The centre square of an image in any of Pillow's modes, resized with antialiasing.

    Integers above 8 bits are read as 0 to 65535, floats as 0 to 1; palettes are looked up; what is transparent turns
    black; a camera's orientation tag is followed. Nothing is enlarged.

    Args:
        image: The opened file.
        size: Height and width of the result.

    Returns:
        uint8 ``(size, size, 3)``.

    Raises:
        UnusableImageError: If the image is smaller than ``size``, has several frames, or values outside those ranges.
        Exception: Whatever Pillow's decoder raises on a broken file.
    """
    frames = getattr(image, "n_frames", 1)
    # A camera's MPO file is a JPEG with a preview as its second frame.
    if frames != 1 and image.format != "MPO":
        raise UnusableImageError(f"wrong shape: {frames} frames, not 1")
    image = ImageOps.exif_transpose(image)
    width, height = image.size
    side = min(width, height)
    if side < size:
        raise UnusableImageError(f"wrong shape: {width}x{height} pixels, smaller than {size}")
    left, top = (width - side) // 2, (height - side) // 2
    # Cropped first: `resize` with a box looks at what is outside it too.
    image = image.crop((left, top, left + side, top + side))

    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float32)
        if image.mode != "F":
            # Pillow's own conversion to 8 bits clips at 255 where it should divide.
            values /= 65535
            if 0 < values.max() < 1 / 15:
                raise UnusableImageError(
                    f"a 16-bit image with values up to {values.max() * 65535:.0f} only: stretch it to 65535"
                )
        _refuse_values(values)
        gray = Image.fromarray(values).resize((size, size), Image.Resampling.LANCZOS)
        levels = np.rint(np.clip(np.asarray(gray), 0, 1) * 255).astype(np.uint8)
        return np.repeat(levels[..., None], 3, axis=-1)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS))


def _refuse_values(values: NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise UnusableImageError("NaN or infinite values")
    if values.min() < 0 or values.max() > 1:
        raise UnusableImageError(f"values from {values.min():g} to {values.max():g}, not within 0 and 1")
