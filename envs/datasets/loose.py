"""Images as they come: a folder or an array from anybody, read as it is, nothing left out in silence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from envs.datasets.arrays import load_columns
from envs.datasets.base import ImageSet
from envs.datasets.checks import UnusableImageError, square_rgb
from envs.datasets.entries import numbered_labels
from envs.datasets.imagefolder import folder_rows
from rewards.errors import InputError

_SEPARATOR = "@"


def read_image_set(source: str, size: int | None = None) -> ImageSet:
    """Reads every image, or refuses the whole: an audit that skips what it cannot read says too little.

    Args:
        source: A folder of image files (see `read_folder` for its optional table) or an ``.npz`` file with a column
            ``images``, ``(n, h, w)`` or ``(n, h, w, 3)`` of uint8 or of floats in [0, 1], and perhaps ``id``,
            ``group``, ``text``, ``label`` and ``split``. An array on its own may have any name. ``@<split>`` at the end
            takes those rows only whose ``split`` is that.
        size: Height and width to crop and resize to, see `square_rgb`; None for the images' own, which must then be the
            same for all.

    Returns:
        Groups are empty where the source names none.

    Raises:
        InputError: If the source cannot be read, holds no image, or one image does not decode or differs in size.
    """
    path, split = Path(source), ""
    if not path.exists():
        name, _, split = source.rpartition(_SEPARATOR)
        path = Path(name) if name else path
    if path.is_dir():
        images, columns = _read_folder(path, split, size)
    elif path.suffix == ".npz" and path.is_file():
        images, columns = _read_npz(path, split, size)
    else:
        what = "is neither a folder nor an .npz file" if path.exists() else "does not exist"
        raise InputError(f"{source} {what}", "give a folder of images or an .npz file")
    if not len(images):
        of = f" of split {split!r}" if split else ""
        raise InputError(f"{source} has no images{of}", "give at least two")
    return ImageSet(
        images=images,
        ids=tuple(columns["id"]),
        groups=tuple(columns["group"]),
        captions=tuple(columns["text"]),
        labels=numbered_labels(columns["label"]),
    )


Columns = Mapping[str, Sequence[str]]


def _read_folder(path: Path, split: str, size: int | None) -> tuple[NDArray[np.uint8], Columns]:
    rows = [row for row in folder_rows(path) if not split or row["split"] == split]
    pixels: list[NDArray[np.uint8]] = []
    for row in rows:
        file = path / row["id"]
        try:
            with Image.open(file) as image:
                if size is None:
                    image.load()
                    own = square_rgb(image, min(image.size)) if image.width == image.height else _as_it_is(image)
                    pixels.append(own)
                else:
                    pixels.append(square_rgb(image, size))
        except FileNotFoundError as error:
            raise InputError(f"{file} does not exist", "mend the table, or put it there") from error
        except UnusableImageError as error:
            raise InputError(f"{file}: {error}", "mend or remove it, or choose another size") from error
        except Exception as error:
            # Decoders raise a dozen types on broken files, SyntaxError and struct.error among them.
            reason = " ".join(str(error).split())
            raise InputError(f"{file} does not decode: {reason}", "mend or remove it") from error
        if pixels[-1].shape != pixels[0].shape:
            raise InputError(
                f"{file} has {_extent(pixels[-1])} pixels and {path / rows[0]['id']} {_extent(pixels[0])}",
                "set size=<pixels> to crop and resize all of them",
            )
    images = np.stack(pixels) if pixels else np.empty((0, 1, 1, 3), dtype=np.uint8)
    return images, {key: [row[key] for row in rows] for key in ("id", "group", "text", "label")}


def _as_it_is(image: Image.Image) -> NDArray[np.uint8]:
    """An oblong image of 8 bits a channel."""
    if image.mode not in ("L", "RGB", "P", "1"):
        raise UnusableImageError(f"an oblong image of mode {image.mode}")
    return np.asarray(image.convert("RGB"))


def _read_npz(path: Path, split: str, size: int | None) -> tuple[NDArray[np.uint8], Columns]:
    arrays = load_columns(path)
    if "images" not in arrays and len(arrays) == 1:
        arrays = {"images": next(iter(arrays.values()))}
    if "images" not in arrays:
        raise InputError(f"{path} has the columns {', '.join(arrays) or 'none'}", "name the images' column `images`")
    images = arrays["images"]
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3)):
        raise InputError(f"{path}: images of shape {images.shape}", "give (n, h, w), (n, h, w, 1) or (n, h, w, 3)")
    if split and "split" not in arrays:
        raise InputError(f"{path} has no column `split`", f"leave {_SEPARATOR}{split} out")
    rows = np.flatnonzero(arrays["split"].astype(str) == split) if split else np.arange(len(images))
    columns = {
        key: [str(value) for value in arrays[key][rows].tolist()] if key in arrays else [""] * len(rows)
        for key in ("id", "group", "text", "label")
    }
    if "id" not in arrays:
        columns["id"] = [str(row) for row in rows.tolist()]
    return _as_bytes(images[rows], path, size), columns


def _as_bytes(images: NDArray[Any], path: Path, size: int | None) -> NDArray[np.uint8]:
    if np.issubdtype(images.dtype, np.floating):
        if not np.isfinite(images).all() or (images.size and not 0 <= images.min() <= images.max() <= 1):
            raise InputError(f"{path}: images with values outside 0 and 1", "give uint8, or floats in [0, 1]")
        images = np.rint(images * 255).astype(np.uint8)
    if images.dtype != np.uint8:
        raise InputError(f"{path}: images of type {images.dtype}", "give uint8, or floats in [0, 1]")
    images = images[..., None] if images.ndim == 3 else images
    images = np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
    if size is not None and images.shape[1:3] != (size, size):
        try:
            images = np.stack([square_rgb(Image.fromarray(image), size) for image in images])
        except UnusableImageError as error:
            raise InputError(f"{path}: {error}", "choose a smaller size") from error
    return np.ascontiguousarray(images)


def _extent(image: NDArray[np.uint8]) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
