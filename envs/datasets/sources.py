"""The data sets by name, and where each is looked for."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.datasets.arrays import MedMNIST, read_npz
from envs.datasets.base import DatasetCard, ImageSet, Reject
from envs.datasets.checks import CheckedImages, check_images
from envs.datasets.dicom import DICOM_OPTIONS, read_dicom
from envs.datasets.imagefolder import METADATA, read_folder
from envs.datasets.imagenette import IMAGENETTE_OPTIONS, read_imagenette
from envs.datasets.isic_archive import is_isic_archive, read_isic_archive
from envs.datasets.mimic import MIMIC_OPTIONS, read_mimic
from envs.datasets.options import whole
from envs.datasets.phantom import FINDINGS, KINDS, render
from rewards.errors import InputError

Loaded = tuple[CheckedImages, DatasetCard]
Loader = Callable[[Path | None, int, Mapping[str, Any]], Loaded]

_PHANTOM_CHUNK = 64


def load_dataset(
    name: str, *, root: Path | None, size: int, options: Mapping[str, Any]
) -> tuple[ImageSet, DatasetCard, tuple[Reject, ...]]:
    """Every usable image of a data set, before it is split.

    Args:
        name: ``phantom``, ``chest_xray``, ``isic``, ``mimic``, ``dicom``, ``imagenette`` or ``imagefolder``.
        root: ``data.root``: a folder, or for ``chest_xray`` and ``isic`` also an ``.npz`` file, for ``imagenette`` its
            archive; None if not set.
        size: Height and width wanted.
        options: For ``phantom``: ``identities`` (default 1024), ``views`` of each (1 or 2, default 1), ``kinds`` (of
            ``radiograph`` and ``lesion``, default both) and ``seed`` (default 0). For ``mimic``, ``dicom`` and
            ``imagenette``: see `read_mimic`, `read_dicom` and `read_imagenette`. For the others: ``use_split``, and for
            a folder of the ISIC Archive see `read_isic_archive`.

    Returns:
        The images, their card, and those left out.

    Raises:
        InputError: If the name or an option is unknown, the data are nowhere to be found, or none of them can be used.
    """
    checked, card = read_source(name, root=root, size=size, options=options)
    return checked.images, card, checked.rejects


def read_source(name: str, *, root: Path | None, size: int, options: Mapping[str, Any]) -> Loaded:
    """What `load_dataset` returns, and the splits that the source itself declares."""
    if name not in _SOURCES:
        raise InputError(f"there is no data set {name!r}", f"choose among {', '.join(_SOURCES)}")
    loader, known = _SOURCES[name]
    if unknown := sorted(set(options) - known):
        raise InputError(f"{name} has no option {', '.join(unknown)}", f"it has {', '.join(sorted(known))}")
    if root is not None and not root.exists():
        raise InputError(f"data.root={root} does not exist", "give a folder that does")
    return loader(root, size, options)


def _load_phantom(root: Path | None, size: int, options: Mapping[str, Any]) -> Loaded:
    del root
    identities, views, seed = (
        whole(options, k, default) for k, default in (("identities", 1024), ("views", 1), ("seed", 0))
    )
    chosen = options.get("kinds", KINDS)
    chosen = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(KINDS):
        raise InputError(f"phantom kinds={list(chosen)}", f"choose among {', '.join(KINDS)}, each once")
    if identities < 1 or views not in (1, 2) or seed < 0 or size < 16:
        raise InputError(
            f"phantom identities={identities} views={views} seed={seed} size={size}",
            "identities is 1 or more, views 1 or 2, seed 0 or more, size 16 or more",
        )
    kinds = [kind for kind in KINDS if kind in chosen]
    first_label = dict(zip(KINDS, np.cumsum([0, *(len(FINDINGS[kind]) for kind in KINDS)]), strict=False))
    drawn = [
        (kind, render(kind, part, seed=seed, views=[view] * len(part), size=size), view)
        for place, kind in enumerate(kinds)
        for start in range(place, identities, len(kinds) * _PHANTOM_CHUNK)
        for part in [range(start, min(identities, start + len(kinds) * _PHANTOM_CHUNK), len(kinds))]
        for view in range(views)
    ]
    groups = [group for _, phantoms, _ in drawn for group in phantoms.groups]
    suffixes = [f"-view{view}" for _, phantoms, view in drawn for _ in phantoms.groups]
    checked = check_images(
        np.concatenate([phantoms.images for _, phantoms, _ in drawn]),
        ids=[group + suffix for group, suffix in zip(groups, suffixes, strict=True)],
        groups=groups,
        captions=[caption for _, phantoms, _ in drawn for caption in phantoms.captions],
        labels=np.concatenate([phantoms.labels + first_label[kind] for kind, phantoms, _ in drawn]),
        size=size,
    )
    return checked, DatasetCard("drawn by envs/datasets/phantom.py", "none needed: drawn by a program", synthetic=True)


def _load_folder(root: Path | None, size: int, options: Mapping[str, Any]) -> Loaded:
    del options
    if root is None or not root.is_dir():
        raise InputError(f"imagefolder with data.root={root}", "give the folder of images as data.root")
    return read_folder(root, size), _FOLDER_CARD


_FOLDER_CARD = DatasetCard("a folder of the user's own images", "as the folder's owner says")


@dataclass(frozen=True)
class _Collection:
    """A data set of real images that comes as one of several files.

    Attributes:
        name: The data set's name and the beginning of this project's own file's name.
        licence: For the message that says what is missing.
        medmnist: The MedMNIST+ set of the same kind of image.
        archive: Whether a folder of it may have the ISIC Archive's layout.
    """

    name: str
    licence: str
    medmnist: MedMNIST
    archive: bool = False

    def load(self, root: Path | None, size: int, options: Mapping[str, Any]) -> Loaded:
        """Looks in `root`, ``$MEMCONTROL_DATA``, medmnist's cache, and last on the network."""
        found = next(self._places(root, size), None)
        if found is None:
            found = self._download(root, size)
        if self.archive and is_isic_archive(found):
            return read_isic_archive(found, size, options)
        if found.is_dir():
            return read_folder(found, size), _FOLDER_CARD
        return read_npz(found, self.medmnist, size)

    def _places(self, root: Path | None, size: int) -> Iterator[Path]:
        shared = os.environ.get("MEMCONTROL_DATA")
        if root is not None and not root.is_dir():
            yield root
        if root is not None and any((root / name).is_file() for name in METADATA):
            yield root
        for folder in (root, Path(shared) if shared else None, Path.home() / ".medmnist"):
            if folder is None:
                continue
            # Larger files are resized, so 64 serves smaller sizes too.
            for pixels in dict.fromkeys((size, 64)):
                for stem in (self.name, self.medmnist.flag):
                    if (path := folder / f"{stem}_{pixels}.npz").is_file():
                        yield path
            if any((folder / self.name / name).is_file() for name in METADATA):
                yield folder / self.name

    def _download(self, root: Path | None, size: int) -> Path:
        """Through the ``medmnist`` package, which checks the file's MD5 and keeps it in ``~/.medmnist``."""
        tried = f"data.root={root}, $MEMCONTROL_DATA={os.environ.get('MEMCONTROL_DATA', '')}, ~/.medmnist"
        try:
            dataset = getattr(importlib.import_module("medmnist"), self.medmnist.python_class)
        except (ImportError, AttributeError):
            failure = "the package medmnist is not installed, or lacks torchvision"
        else:
            card = self.medmnist.card
            print(f"downloading {card.source}; licence: {card.licence}", file=sys.stderr)
            try:
                dataset(split="train", download=True, size=size if size in (128, 224) else 64)
                return next(self._places(None, size))
            except (RuntimeError, StopIteration):
                failure = "medmnist's download failed"
        raise InputError(
            f"no {self.name} images in {tried}, and {failure}",
            f"point data.root or MEMCONTROL_DATA at a folder with {self.name}_64.npz, {self.medmnist.flag}_64.npz, "
            f"{'a download of the ISIC Archive (isic-archive.com), ' if self.archive else ''}or image files with "
            f"{' or '.join(METADATA)}, or install medmnist and connect to a network; "
            f"licence: {self.licence}",
        )


_CHEST_XRAY = _Collection(
    name="chest_xray",
    licence="CC BY 4.0 (Kermany, Zhang, Goldbaum 2018, doi:10.17632/rscbjbr9sj.2)",
    medmnist=MedMNIST(
        flag="pneumoniamnist",
        python_class="PneumoniaMNIST",
        caption="pediatric chest X-ray",
        labels=("normal", "pneumonia"),
        card=DatasetCard("PneumoniaMNIST, MedMNIST+ (Yang et al. 2023), from Kermany et al. 2018", "CC BY 4.0"),
    ),
)
_ISIC = _Collection(
    name="isic",
    archive=True,
    licence="CC0 1.0 for the ISIC 2017 challenge's images, CC BY-NC 4.0 for DermaMNIST's, the archive's by image",
    medmnist=MedMNIST(
        flag="dermamnist",
        python_class="DermaMNIST",
        caption="dermoscopy image",
        labels=(
            "actinic keratoses and intraepithelial carcinoma",
            "basal cell carcinoma",
            "benign keratosis-like lesions",
            "dermatofibroma",
            "melanoma",
            "melanocytic nevi",
            "vascular lesions",
        ),
        card=DatasetCard(
            "DermaMNIST, MedMNIST+ (Yang et al. 2023), from HAM10000 (Tschandl et al. 2018)", "CC BY-NC 4.0"
        ),
    ),
)
_USE_SPLIT = frozenset({"use_split"})
_DRAW = frozenset({"limit", "seed"})
_SOURCES: Mapping[str, tuple[Loader, frozenset[str]]] = {
    "phantom": (_load_phantom, frozenset({"identities", "views", "kinds", "seed"})),
    "chest_xray": (_CHEST_XRAY.load, _USE_SPLIT),
    "isic": (_ISIC.load, _USE_SPLIT | _DRAW),
    "mimic": (read_mimic, MIMIC_OPTIONS),
    "dicom": (read_dicom, DICOM_OPTIONS),
    "imagenette": (read_imagenette, IMAGENETTE_OPTIONS),
    "imagefolder": (_load_folder, _USE_SPLIT),
}
