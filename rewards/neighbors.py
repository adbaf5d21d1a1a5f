"""Exact nearest neighbours among a few thousand feature vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The k nearest gallery members of n queries, nearest first; of equally near ones, the lowest index first.

    Attributes:
        distances: float64 ``(n, k)``: L2 / sqrt(d), exactly 0 for an exact copy.
        indices: int64 ``(n, k)``: rows of the gallery.
    """

    distances: Tensor
    indices: Tensor


def nearest_neighbors(
    queries: Tensor,
    gallery: Tensor,
    *,
    flipped_gallery: Tensor | None = None,
    k: int = 1,
    exclude_self: bool = False,
    max_bytes: int = 1 << 28,
) -> Neighbors:
    """Search by matrix products in double precision; whatever rounding could have misplaced is compared by differences.

    Args:
        queries: float ``(n, d)``.
        gallery: float ``(m, d)``.
        flipped_gallery: float ``(m, d)``, features of the gallery's images flipped left to right. A member's distance
            is then the smaller of its two. (Flipping the gallery costs one embedding of it for ever; flipping queries
            would cost one of every generated image.)
        k: How many, at most m, or m - 1 with ``exclude_self``.
        exclude_self: ``queries`` are the gallery in the same order, and member i is no neighbour of query i, flipped or
            not.
        max_bytes: Roughly the memory that the search may take beside its arguments and result.

    Raises:
        ValueError: If shapes do not fit, k is out of range, or a feature is not finite (it would look far away).
    """
    galleries = [gallery] if flipped_gallery is None else [gallery, flipped_gallery]
    (n, d), m = queries.shape, len(gallery)
    if any(g.shape != (m, d) for g in galleries) or (exclude_self and n != m):
        shapes = [tuple(t.shape) for t in (queries, *galleries)]
        raise ValueError(f"queries (n, d) and galleries (m, d) do not fit: {shapes}, exclude_self={exclude_self}")
    if not 1 <= k <= m - exclude_self:
        raise ValueError(f"k={k} neighbours among {m} with exclude_self={exclude_self}")
    if not all(math.isfinite(features.sum(dtype=torch.float64)) for features in (queries, *galleries)):
        raise ValueError("features are finite numbers, got NaN or infinity")

    block = max(1, max_bytes // (128 * d))
    longest = max(g.norm(dim=1).max().item() for g in galleries)
    distances, indices = [torch.empty(0, k, dtype=torch.float64)], [torch.empty(0, k, dtype=torch.int64)]
    for start, chunk in _chunks(queries, max(1, max_bytes // (64 * (m + d)))):
        squares = torch.stack([_by_product(chunk, g, block) for g in galleries]).amin(0)
        if exclude_self:
            rows = torch.arange(len(chunk))
            squares[rows, start + rows] = torch.inf
        error = (d + 4) * torch.finfo(torch.float64).eps * (chunk.norm(dim=1, keepdim=True) + longest).square()
        near = squares <= squares.kthvalue(k, dim=1, keepdim=True).values + 2 * error
        row, column = near.nonzero(as_tuple=True)
        squares = torch.full_like(squares, torch.inf)
        exact = [_by_difference(chunk, g, row, column, block) for g in galleries]
        squares[row, column] = torch.stack(exact).amin(0)
        ranked = squares.sort(dim=1, stable=True)
        distances.append((ranked.values[:, :k] / d).sqrt())
        indices.append(ranked.indices[:, :k].clone())  # a view would keep all m columns
    return Neighbors(torch.cat(distances), torch.cat(indices))


def _chunks(rows: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(rows), size):
        yield start, rows[start : start + size].double()


def _by_product(queries: Tensor, gallery: Tensor, block: int) -> Tensor:
    """||a||^2 + ||b||^2 - 2 a.b, which cancels where a and b are close."""
    blocks = [
        queries.square().sum(1, keepdim=True) + g.square().sum(1) - 2 * queries @ g.T
        for _, g in _chunks(gallery, block)
    ]
    return torch.cat(blocks, dim=1)


def _by_difference(queries: Tensor, gallery: Tensor, row: Tensor, column: Tensor, block: int) -> Tensor:
    pairs = zip(torch.split(row, block), torch.split(column, block), strict=True)
    return torch.cat([(queries[i] - gallery[j].double()).square().sum(1) for i, j in pairs])
