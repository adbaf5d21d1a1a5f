"""Images that have not been decoded yet: what is known of each, a draw among them, and the decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from envs.datasets.base import Reject
from envs.datasets.checks import CheckedImages, UnusableImageError, check_images, square_rgb
from rewards.errors import InputError


@dataclass(frozen=True, slots=True)
class Entry:
    """One image by name.

    Attributes:
        id: Unique within the source.
        file: Where it is; a path in a folder or in an archive.
        group: The patient; empty for one nobody else shares.
        text: The caption.
        label: A number or a name, see `numbered_labels`.
        split: The split that the source puts it in.
    """

    id: str
    file: str
    group: str = ""
    text: str = ""
    label: str = ""
    split: str = ""


def draw_entries(entries: Sequence[Entry], limit: int | None, seed: int, *, by_split: bool = False) -> list[Entry]:
    """Chooses what to decode: patients in random order until there are enough images.

    Only the last patient may be cut short. The result depends on the seed and on which entries there are, not on their
    order.

    Args:
        entries: Everything there is.
        limit: Images wanted; None for all.
        seed: Of the draw.
        by_split: Whether each split that an entry names gets an equal share of the limit, and entries that name none
            get nothing: a source's own test split may be too small a part of it to be hit by chance.
    """
    if limit is None:
        return sorted(entries, key=lambda entry: entry.id)
    if by_split and (splits := sorted({entry.split for entry in entries} - {""})):
        parts = [[entry for entry in entries if entry.split == name] for name in splits]
        return [entry for part in parts for entry in draw_entries(part, max(1, limit // len(parts)), seed)]
    members: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.id):
        members.setdefault(entry.group or entry.id, []).append(entry)
    names = sorted(members)
    drawn: list[Entry] = []
    for place in np.random.default_rng(seed).permutation(len(names)):
        drawn += members[names[place]]
        if len(drawn) >= limit:
            break
    return drawn[:limit]


def read_entries(
    entries: Sequence[Entry],
    read: Callable[[Entry], NDArray[np.uint8]],
    size: int,
    *,
    source: Path,
    rejects: Sequence[Reject] = (),
) -> CheckedImages:
    """Decodes and checks every entry; what cannot be used becomes a reject.

    Args:
        entries: What to decode, in this order.
        read: Gives uint8 ``(size, size, 3)``. `UnusableImageError` says why there is none; any other exception is taken
            for a decoder's.
        size: Height and width.
        source: Where the entries come from, for the message if none can be used.
        rejects: What was left out before; comes first in the result.

    Raises:
        InputError: If no image can be used.
    """
    pixels: list[NDArray[np.uint8]] = []
    kept: list[Entry] = []
    left_out = list(rejects)
    for entry in entries:
        try:
            pixels.append(read(entry))
            kept.append(entry)
        except FileNotFoundError:
            left_out.append(Reject(entry.id, "there is no such file"))
        except UnusableImageError as error:
            left_out.append(Reject(entry.id, str(error)))
        except Exception as error:
            # Decoders raise a dozen types on broken files, SyntaxError and struct.error among them.
            left_out.append(Reject(entry.id, f"does not decode: {_fault(error)}"))
    try:
        return check_images(
            np.stack(pixels) if pixels else np.empty((0, size, size, 3), dtype=np.uint8),
            ids=[entry.id for entry in kept],
            groups=[entry.group for entry in kept],
            captions=[entry.text for entry in kept],
            labels=numbered_labels([entry.label for entry in kept]),
            declared=[entry.split for entry in kept],
            size=size,
            rejects=left_out,
        )
    except InputError as error:
        raise InputError(f"{source}: {error.what}", error.remedy) from error


def _fault(error: Exception) -> str:
    """What went wrong, without the path: it may name a patient, and rejects are counted by reason."""
    if isinstance(error, UnidentifiedImageError):
        return "no image of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def decode_square(file: Path | IO[bytes], size: int) -> NDArray[np.uint8]:
    """One image file as `square_rgb` makes it, a large JPEG decoded at a fraction of its size.

    Raises:
        UnusableImageError: See `square_rgb`.
        Exception: Whatever Pillow's decoder raises on a broken file.
    """
    with Image.open(file) as image:
        # Averages blocks of 2, 4 or 8 pixels, so what the resize to `size` would have seen is still there.
        image.draft(None, (4 * size, 4 * size))
        return square_rgb(image, size)


def numbered_labels(labels: Sequence[str]) -> NDArray[np.int64]:
    """Integers as they are, names by their place in the alphabet, -1 where there is none."""
    known = sorted(set(labels) - {""})
    try:
        number = {label: int(label) for label in known}
    except ValueError:
        number = {label: place for place, label in enumerate(known)}
    return np.array([number.get(label, -1) for label in labels], dtype=np.int64)
