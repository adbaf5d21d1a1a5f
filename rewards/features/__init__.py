"""Image embeddings: what a distance between two images is measured in.

By name, in a configuration's ``embeddings``:

- ``pixels``, and ``pixels_32``, the same at 32 x 32
- ``efficientnet_lite0``
- ``torchscript:<file>``, or the file alone if it ends in .pt, .pth, .ts or .torchscript, for example
  ``sscd.pt?size=288&mean=0.485,0.456,0.406&std=0.229,0.224,0.225`` (see `TorchScript` and `Preprocessing`)
- ``transformers:<folder or name on the Hub>``, for example ``transformers:facebook/dinov2-small``
  (see `TransformersVision`)
- ``xrv:<weights>``, for example ``xrv:densenet121-res224-all`` (see `XRayVision`; the extra ``xrv``)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from rewards.errors import InputError
from rewards.features.batched import BatchedNetwork
from rewards.features.cached import CachedEmbedding
from rewards.features.lite0 import EfficientNetLite0
from rewards.features.pixels import PixelEmbedding
from rewards.features.preprocessing import Preprocessing
from rewards.features.pretrained import TransformersVision
from rewards.features.protocol import Embedding
from rewards.features.torchscript import SUFFIXES, TorchScript
from rewards.features.xrv import XRayVision

__all__ = [
    "BatchedNetwork",
    "CachedEmbedding",
    "EfficientNetLite0",
    "Embedding",
    "PixelEmbedding",
    "Preprocessing",
    "TorchScript",
    "TransformersVision",
    "XRayVision",
    "cached_embedding",
    "embedding",
]

_EMBEDDINGS: dict[str, Callable[[], Embedding]] = {
    "pixels": PixelEmbedding,
    "pixels_32": lambda: PixelEmbedding(32),
    EfficientNetLite0.name: EfficientNetLite0,
}
_FAMILIES: dict[str, Callable[[str, str], Embedding]] = {
    "torchscript": TorchScript,
    "transformers": TransformersVision,
    "xrv": XRayVision,
}
_FORMS = (
    *_EMBEDDINGS,
    "torchscript:<file>",
    *(f"<file>{suffix}" for suffix in SUFFIXES[:-1]),
    "transformers:<folder or name on the Hub>",
    "xrv:<weights>",
)


@cache
def embedding(name: str) -> Embedding:
    """The embedding of that name, loaded once a process.

    Args:
        name: One of the forms above.

    Raises:
        InputError: If there is none, or it cannot be loaded.
    """
    if name in _EMBEDDINGS:
        return _EMBEDDINGS[name]()
    family, _, spec = str(name).partition(":")
    if family in _FAMILIES and spec:
        return _FAMILIES[family](spec, name)
    if str(name).partition("?")[0].lower().endswith(SUFFIXES):
        return TorchScript(name, name)
    raise InputError(f"embedding {name!r} is unknown", f"choose among {', '.join(_FORMS)}")


@cache
def cached_embedding(name: str, folder: Path | None = None) -> CachedEmbedding:
    """`embedding` with the features of images it has seen, in memory and, with a folder, on disk; once a process.

    Args:
        name: See `embedding`.
        folder: See `CachedEmbedding`: what is kept there of private images is private.

    Raises:
        InputError: If there is no such embedding, it cannot be loaded, or the folder cannot be created.
    """
    return CachedEmbedding(embedding(name), folder)
