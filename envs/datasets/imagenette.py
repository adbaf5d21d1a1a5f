"""Imagenette: ten easy classes of ImageNet, in fast.ai's layout."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.datasets.base import DatasetCard
from envs.datasets.checks import CheckedImages
from envs.datasets.entries import Entry, decode_square, draw_entries, read_entries
from envs.datasets.options import draw_options
from envs.datasets.places import find_tree, tried
from rewards.errors import InputError

IMAGENETTE_OPTIONS = frozenset({"limit", "seed"})

_LICENCE = "ImageNet's terms (research and education, not commercial); fast.ai's selection Apache-2.0"
_CARD = DatasetCard("Imagenette (fast.ai), ten classes of ImageNet (Deng et al. 2009)", _LICENCE)
_PARTS = ("train", "val")
_SUFFIX = ".JPEG"
_NAMES = ("imagenette2-160", "imagenette2-320", "imagenette2")
_CLASSES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


def read_imagenette(root: Path | None, size: int, options: Mapping[str, Any]) -> tuple[CheckedImages, DatasetCard]:
    """Reads a draw of images from ``imagenette2-160/{train,val}/<wnid>/*.JPEG``, a folder or the archive itself.

    Its two parts are pooled: splits are drawn. Each image is its own group; the label is the class's place in the order
    of wnids.

    Args:
        root: ``data.root``: the folder or the ``.tgz``, or a folder with one of them; None for ``$MEMCONTROL_DATA``.
        size: Height and width wanted.
        options: ``limit`` (default 4000, null for all) and ``seed`` (default 0) of the draw.

    Raises:
        InputError: If the data are nowhere to be found, the archive is broken, a class is not Imagenette's, an option
            is wrong, or no image can be used.
    """
    limit, seed = draw_options(options)
    names = (*_NAMES, *(f"{name}.tgz" for name in _NAMES))
    place = find_tree(names, root, _holds)
    if place is None:
        raise InputError(
            f"no Imagenette in {tried(root)}",
            "get https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz and point data.root at it, or at what "
            f"it unpacks to; licence: {_LICENCE}",
        )
    checked, there, drawn = (_read_folder if place.is_dir() else _read_archive)(place, size, limit, seed)
    note = f"{drawn} of {there} images drawn (limit={limit}, seed={seed})"
    return checked, replace(_CARD, notes=(note,))


def _holds(place: Path) -> bool:
    return (place / "train").is_dir() or (place.is_file() and place.name.endswith((".tgz", ".tar.gz")))


def _read_folder(folder: Path, size: int, limit: int | None, seed: int) -> tuple[CheckedImages, int, int]:
    files = [path.relative_to(folder).as_posix() for part in _PARTS for path in (folder / part).glob(f"*/*{_SUFFIX}")]
    entries = _entries(folder, files)
    drawn = draw_entries(entries, limit, seed)
    checked = read_entries(drawn, lambda entry: decode_square(folder / entry.file, size), size, source=folder)
    return checked, len(entries), len(drawn)


def _read_archive(archive: Path, size: int, limit: int | None, seed: int) -> tuple[CheckedImages, int, int]:
    try:
        with tarfile.open(archive, "r:gz") as tar:
            members = {member.name: member for member in tar if member.isfile() and member.name.endswith(_SUFFIX)}
            entries = _entries(archive, list(members))
            # In the archive's order: going back in a gzip stream begins it anew.
            drawn = sorted(draw_entries(entries, limit, seed), key=lambda entry: members[entry.file].offset)

            def read(entry: Entry) -> NDArray[np.uint8]:
                return decode_square(BytesIO(_content(tar, members[entry.file])), size)

            return read_entries(drawn, read, size, source=archive), len(entries), len(drawn)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{archive} cannot be read ({reason})", "download it again") from error


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member)
    return content.read() if content is not None else b""


def _entries(source: Path, files: Sequence[str]) -> list[Entry]:
    """Names end in ``{train,val}/<wnid>/<file>``; whatever comes before differs with the archive's resolution."""
    entries = []
    labels = {wnid: str(place) for place, wnid in enumerate(sorted(_CLASSES))}
    for file in files:
        *_, part, wnid, name = ("", "", *PurePosixPath(file).parts)
        if part not in _PARTS:
            continue
        if wnid not in _CLASSES:
            raise InputError(f"{source}: {part}/{wnid} is no class of Imagenette", "use env=imagefolder for other sets")
        text = f"a photo of a {_CLASSES[wnid]}".replace(" a E", " an E")
        entries.append(Entry(f"{part}/{wnid}/{name}", file, text=text, label=labels[wnid]))
    if not entries:
        raise InputError(f"{source} has no train/<wnid>/*{_SUFFIX}", "download it again")
    return entries
