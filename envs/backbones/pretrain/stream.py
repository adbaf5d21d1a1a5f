"""The endless stream of public images that the embedded backbone learns from.

A batch is a pure function of ``(seed, step)``, so an interrupted pretraining goes on exactly where it stopped. Sources:
adult chest X-rays (NIH ChestX-ray14, the public set) and phantoms of the site ``public``. Private sets never enter.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.transform import resize

from envs.datasets.phantom import Kind, render

# Identities of the stream are drawn from this many, so that no two batches are likely to share one.
_IDENTITIES = 2**31 - 1


@dataclass(frozen=True)
class PublicImages:
    """Public photographs: uint8 RGB ``(n, 64, 64, 3)`` with captions; train and held-out patients are disjoint."""

    train: NDArray[np.uint8]
    train_captions: tuple[str, ...]
    heldout: NDArray[np.uint8]

    @classmethod
    def load(cls, path: Path) -> PublicImages:
        """Reads the columns ``images``, ``text`` and ``split`` of an npz file, gray or RGB."""
        with np.load(path, allow_pickle=False) as data:
            images, text, split = data["images"], data["text"], data["split"]
        if images.ndim == 3:
            images = np.repeat(images[..., None], 3, axis=-1)
        train = split == "train"
        return cls(images[train], tuple(str(t) for t in text[train]), images[~train])


@dataclass(frozen=True)
class Stream:
    """Batches of public images by step number.

    Attributes:
        public: The photographs.
        seed: Names the stream.
        photographs: Share of photographs in a batch; the rest is half radiograph, half lesion phantoms.
        colour: Probability that an image's colours are remixed, as much as an autoencoder should bear.
        zoom: Photographs are cropped by up to this factor.
    """

    public: PublicImages
    seed: int = 0
    photographs: float = 0.4
    colour: float = 0.0
    zoom: float = 1.0

    def batch(self, step: int, size: int) -> tuple[torch.Tensor, tuple[str, ...]]:
        """Images in [-1, 1] of shape ``(size, 3, 64, 64)`` and their captions."""
        rng = np.random.default_rng([self.seed, step])
        n_photographs = round(self.photographs * size)
        n_lesions = (size - n_photographs) // 2
        rows = rng.integers(len(self.public.train), size=n_photographs)
        images = [self._crop(self.public.train[r], rng) for r in rows]
        captions = [self.public.train_captions[r] for r in rows]
        counts: dict[Kind, int] = {"radiograph": size - n_photographs - n_lesions, "lesion": n_lesions}
        for kind, n in counts.items():
            phantoms = render(kind, rng.integers(_IDENTITIES, size=n).tolist(), seed=self.seed, site="public")
            images.extend(phantoms.images.astype(np.float32) / 255)
            captions.extend(phantoms.captions)
        stacked = np.stack(images)
        if self.colour:
            stacked = _remix(stacked, rng, self.colour)
        flip = rng.random(size) < (0.5 if self.colour else 0.0)
        stacked[flip] = stacked[flip, :, ::-1]
        tensor = torch.from_numpy(np.ascontiguousarray(stacked.transpose(0, 3, 1, 2), dtype=np.float32))
        return tensor * 2 - 1, tuple(captions)

    def _crop(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float32]:
        photograph = np.asarray(image / np.float32(255), dtype=np.float32)
        if self.zoom <= 1:
            return photograph
        height, width = photograph.shape[:2]
        side = round(height / rng.uniform(1, self.zoom))
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        cut = photograph[top : top + side, left : left + side]
        return np.asarray(resize(cut, (height, width), order=3, anti_aliasing=False), dtype=np.float32)


def _remix(images: NDArray[np.float32], rng: np.random.Generator, share: float) -> NDArray[np.float32]:
    """Remixes colours and exposure of a share of the images, and blends some with a neighbour in the batch.

    The autoencoder must keep patients apart on sets it never saw, so it trains on more colours and contrasts than the
    public images have.
    """
    out = images.copy()
    for i in np.flatnonzero(rng.random(len(images)) < share):
        matrix = np.eye(3) + rng.normal(0, 0.25, (3, 3))
        gain, gamma = rng.uniform(0.6, 1.4), np.exp(rng.uniform(-0.4, 0.4))
        base = np.clip(images[i], 0, 1) ** gamma
        if rng.random() < 0.15:
            base = 1 - base
        mixed = (base - 0.5) @ matrix.T.astype(np.float32) * gain + 0.5 + rng.normal(0, 0.12, 3)
        if rng.random() < 0.35:
            alpha = rng.uniform(0.2, 0.8)
            mixed = alpha * mixed + (1 - alpha) * np.rot90(images[i - 1], int(rng.integers(4)))
        out[i] = np.clip(mixed, 0, 1)
    return out
