"""Local alignment: the distance between two images that is left when one may be moved by a few pixels."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from rewards.neighbors import Neighbors

ALIGNED_PIXELS = "aligned_pixels"
"""What metrics' settings and reports call this distance."""

ALIGNMENT_CANDIDATES = ("pixels", "efficientnet_lite0")
"""Embeddings whose nearest training images are aligned: pixels know noisy copies, features know shifted ones."""

CANDIDATES = 5
"""How many of each. Aligning with every training image would cost a Fourier transform a pair."""

_REACH = 1 / 16
"""The furthest shift in each direction, as a share of height and width: 4 of 64 pixels."""
_BLUR = 1 / 64
"""Standard deviation of the Gaussian that both images are blurred with, as a share of height and width. It takes away
most of a copy's noise (otherwise two smooth lesions lie nearer to each other than one to its own noisy copy), and a
copy that was blurred already stays near."""
_BLOCK, _CHUNK = 512, 8
"""Queries whose candidates are in memory, and of those, queries that are aligned at once: few, to stay in the cache."""


def aligned_neighbors(queries: Tensor, train: Tensor, candidates: Tensor) -> Neighbors:
    """The candidate that a shift, a flip and a change of brightness bring nearest to each query.

    Both are blurred a little. The query's middle, without a margin as wide as the furthest shift, is laid over every
    place of the candidate and of its mirror image where it fits. The distance is the root mean square difference of the
    two, each less its own mean, in [0, 1], at the best place. All places at once are a cross-correlation, taken by
    Fourier transforms; the best one is computed again by differences, so that a copy is at exactly 0.

    Args:
        queries: uint8 ``(n, 3, h, w)``.
        train: uint8 ``(m, 3, h, w)``.
        candidates: int64 ``(n, c)``: rows of ``train`` to align each query with. Repetitions do no harm.

    Returns:
        ``(n, 1)``: see `Neighbors`.

    Raises:
        ValueError: If images differ in size, or a row is out of range.
    """
    if queries.shape[1:] != train.shape[1:] or queries.dtype != torch.uint8 or train.dtype != torch.uint8:
        raise ValueError(f"uint8 images of one size are aligned, got {tuple(queries.shape)} and {tuple(train.shape)}")
    reach = _reach(queries.shape[-2]), _reach(queries.shape[-1])
    distances, indices = torch.empty(len(queries), dtype=torch.float64), torch.empty(len(queries), dtype=torch.int64)
    # One block if all candidates fit: then each is prepared once.
    size = len(queries) if len(candidates.unique()) <= 2 * _BLOCK else _BLOCK
    for start in range(0, len(queries), max(1, size)):
        block = slice(start, start + size)
        used, places = candidates[block].unique(return_inverse=True)
        sides = _sides(_blurred(train[used]), reach)
        parts = zip(_blurred(queries[block]).split(_CHUNK), places.split(_CHUNK), strict=True)
        found = [_align(part, sides, place, reach) for part, place in parts]
        distances[block], chosen = (torch.cat(part) for part in zip(*found, strict=True))
        indices[block] = used[chosen]
    return Neighbors(distances[:, None], indices[:, None])


def _reach(length: int) -> int:
    return min(max(1, round(length * _REACH)), (length - 1) // 2)


def _blurred(images: Tensor) -> Tensor:
    """In [0, 1]. Tap by tap, the two at one distance first: no rounding depends on the batch or on a flip."""
    values = images.contiguous().float() / 255  # sums round differently in another layout
    for axis in (-2, -1):
        length = values.shape[axis]
        sigma = length * _BLUR
        radius = math.ceil(3 * sigma)
        weights = torch.exp(-0.5 * (torch.arange(radius + 1) / sigma).square())
        shares = (weights / (2 * weights.sum() - 1)).tolist()
        padded = functional.pad(values, (0, 0, radius, radius) if axis == -2 else (radius, radius, 0, 0), "replicate")
        blurred = padded.narrow(axis, radius, length) * shares[0]
        for tap, weight in enumerate(shares[1:], start=1):
            sides = padded.narrow(axis, radius - tap, length) + padded.narrow(axis, radius + tap, length)
            blurred += sides.mul_(weight)
        values = blurred
    return values


class _Side(NamedTuple):
    """Training images, upright or flipped.

    Attributes:
        images: ``(u, 3, h, w)``, blurred.
        spectra: Of the images less their means: small numbers, of whose differences float32 keeps more.
        spread: `_spread` of the same.
    """

    images: Tensor
    spectra: Tensor
    spread: Tensor


def _sides(images: Tensor, reach: tuple[int, int]) -> list[_Side]:
    size = images.shape[-2] - 2 * reach[0], images.shape[-1] - 2 * reach[1]
    sides = []
    for seen in (images, images.flip(-1)):
        small = seen - seen.mean((1, 2, 3), keepdim=True)
        sides.append(_Side(seen, torch.fft.rfft2(small), _spread(small, size)))
    return sides


def _align(queries: Tensor, sides: list[_Side], place: Tensor, reach: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Distances ``(n,)``, and the rows of the sides' images that the queries are nearest to."""
    (n, c), (up, left) = place.shape, reach
    height, width = queries.shape[-2:]
    middles = queries[..., up : height - up, left : width - left]
    centred = middles - middles.mean((1, 2, 3), keepdim=True)
    spectra = torch.fft.rfft2(functional.pad(centred, (left, left, up, up))).conj()
    shifts = torch.arange(-up, up + 1)[:, None], torch.arange(-left, left + 1)
    squares = torch.empty(n, 2, c, 2 * up + 1, 2 * left + 1)
    for number, side in enumerate(sides):
        products = (spectra[:, None] * side.spectra[place]).sum(2)
        # Circular, but the margin is as wide as the shift: nothing that wraps around is looked at.
        across = torch.fft.irfft2(products, s=(height, width))[(..., *shifts)]
        squares[:, number] = centred.square().sum((1, 2, 3))[:, None, None, None] + side.spread[place] - 2 * across
    flipped, candidate, down, right = torch.unravel_index(squares.flatten(1).argmin(1), squares.shape[1:])
    chosen = place.gather(1, candidate[:, None])[:, 0]
    nearest = torch.where(flipped[:, None, None, None] == 1, sides[1].images[chosen], sides[0].images[chosen])
    rows = down[:, None] + torch.arange(middles.shape[-2])
    columns = right[:, None] + torch.arange(middles.shape[-1])
    picture, channel = torch.arange(n)[:, None, None, None], torch.arange(nearest.shape[1])[:, None, None]
    windows = nearest[picture, channel, rows[:, None, :, None], columns[:, None, None, :]]
    return (middles.double() - windows.double()).var((1, 2, 3), correction=0).sqrt(), chosen


def _spread(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Sum of squared deviations from the mean within every window of that size: ``(m, places down, places right)``."""
    down, right = (_windows(length, extent) for length, extent in zip(images.shape[-2:], size, strict=True))

    def totals(values: Tensor) -> Tensor:
        return down @ values.sum(1) @ right.T

    return totals(images.square()) - totals(images).square() / (images.shape[1] * size[0] * size[1])


def _windows(length: int, extent: int) -> Tensor:
    """Row i sums the window that begins at i: ``(length - extent + 1, length)``."""
    place, begin = torch.arange(length), torch.arange(length - extent + 1)[:, None]
    return ((place >= begin) & (place < begin + extent)).float()
