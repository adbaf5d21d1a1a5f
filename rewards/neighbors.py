"""Exact nearest neighbours: single-precision products propose, double-precision differences decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

Backend = Literal["auto", "torch", "faiss"]

_MARGIN = 8
"""What faiss is asked for beyond k: enough that most rows are complete, few enough that its heaps stay cheap."""


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
    labels: Tensor | None = None,
    max_bytes: int = 1 << 28,
    backend: Backend = "auto",
) -> Neighbors:
    """Search by matrix products in single precision; whatever rounding could have misplaced is compared by differences.

    The result is that of comparing all differences in double precision, to the last bit: it depends neither on the
    backend nor on ``max_bytes`` or the order of the queries. Many members nearer to each other than single precision
    tells cost time, since each is compared.

    Args:
        queries: float ``(n, d)``, on any device; the result is on the same.
        gallery: float ``(m, d)``, on the same device.
        flipped_gallery: float ``(m, d)``, features of the gallery's images flipped left to right. A member's distance
            is then the smaller of its two. (Flipping the gallery costs one embedding of it for ever; flipping queries
            would cost one of every generated image.)
        k: How many, at most the number of members, or of labels where given; one less with ``exclude_self``.
        exclude_self: ``queries`` are the gallery in the same order, and member i is no neighbour of query i, flipped or
            not; nor is any other member of its label.
        labels: int64 ``(m,)``: members of one label are copies of each other and count as one neighbour, which is the
            nearest of them.
        max_bytes: Roughly the memory that the search may take beside its arguments and result.
        backend: What proposes neighbours: torch's products, faiss's search, or what ``auto`` takes to be faster: faiss
            if it is a GPU build and finds a GPU while the features lie in main memory, otherwise torch.

    Raises:
        ValueError: If shapes or types do not fit, k is out of range, the backend is unknown, or a feature is not finite
            (it would look far away) or so large that squares overflow.
    """
    galleries = [gallery] if flipped_gallery is None else [gallery, flipped_gallery]
    (n, d), m = queries.shape, len(gallery)
    if any(g.shape != (m, d) for g in galleries) or (exclude_self and n != m):
        shapes = [tuple(t.shape) for t in (queries, *galleries)]
        raise ValueError(f"queries (n, d) and galleries (m, d) do not fit: {shapes}, exclude_self={exclude_self}")
    if labels is not None:
        if labels.shape != (m,) or labels.dtype != torch.int64:
            raise ValueError(f"labels are int64 ({m},), got {labels.dtype} {tuple(labels.shape)}")
        labels = labels.to(gallery.device).unique(return_inverse=True)[1]
    count, of = (m, "members") if labels is None else (int(labels.max()) + 1 if m else 0, "labels")
    if not 1 <= k <= count - exclude_self:
        raise ValueError(f"k={k} neighbours among {count} {of} with exclude_self={exclude_self}")
    if backend not in get_args(Backend):
        raise ValueError(f"backend={backend!r}: choose among {', '.join(get_args(Backend))}")
    space = _Space.of(queries, galleries, max_bytes)
    tool = None if space.single == torch.float64 else _tool(backend, queries.is_cuda)
    search = _Search(queries, galleries, labels, k, exclude_self, space, tool, max_bytes)
    parts = [search.nearest(slice(start, min(start + search.rows, n))) for start in range(0, n, search.rows)]
    distances, indices = (torch.cat(t) for t in zip(search.nearest(slice(0, 0)), *parts, strict=True))
    return Neighbors(distances, indices)


@dataclass(frozen=True, eq=False)
class _Space:
    """Where products are taken: features less a centre, times a power of two, in single precision.

    Distances do not change with the centre, but norms become small, and rounding with them. The scale keeps squares of
    very large and very small features within single precision's range; powers of two round nothing.
    """

    centre: Tensor
    scale: float
    single: torch.dtype

    @classmethod
    def of(cls, queries: Tensor, galleries: list[Tensor], max_bytes: int) -> _Space:
        given = [t for t in (queries, *galleries) if t.numel()]
        sizes = [abs(x.item()) for t in given for x in torch.aminmax(t)]
        if any(not size < 2.0**500 for size in sizes):
            raise ValueError("features are finite numbers whose squares do not overflow, got NaN, infinity or 1e150")
        wide = torch.float32
        for t in (queries, *galleries):
            wide = torch.promote_types(wide, t.dtype)
        limit = 126 if wide == torch.float32 else 500
        scale = 2.0 ** max(-limit, min(limit, -math.frexp(max(sizes, default=0.0))[1]))
        gallery, d = galleries[0], queries.shape[1]
        total = torch.zeros(d, dtype=torch.float64, device=gallery.device)
        for rows in _blocks(gallery, max(1, max_bytes // (64 * max(1, d)))):
            total += rows.double().sum(0)
        return cls((-scale / max(1, len(gallery)) * total).to(wide), scale, _single(queries.device, d))

    def of_rows(self, rows: Tensor) -> Tensor:
        """The rows in this space, rounded once."""
        moved = torch.add(self.centre, rows.to(self.centre.dtype), alpha=self.scale)
        return moved.to(self.single)

    def error(self, query: Tensor, longest: Tensor) -> Tensor:
        """How far a squared distance by products can be from that by differences: the same for torch's and faiss's.

        Let u be half the distance from 1 to the next number, and a and b the norms of a query and a member here. A sum
        of d + 1 terms |b|^2, -2 a_i b_i, in whatever order and with or without fused additions, is wrong by at most
        (d + 1) u / (1 - (d + 1) u) times the sum of their sizes (Higham 2002, section 3.1), and that sum is at most
        (a + b)^2. Rounding |a|^2 and |b|^2, or, as faiss does, summing them in single precision, costs at most as much
        as the terms that it replaces plus 2 u (a + b)^2; having rounded the rows themselves 2 u (a + b)^2; rounding the
        limit compared with u (a + b)^2; the double precision of differences and norms vanishes in the rest. 10 terms
        cover these. The last term is for numbers so small that they are rounded to 0.
        """
        d = len(self.centre)
        terms = (d + 10) * torch.finfo(self.single).eps / 2
        return terms / (1 - terms) * (query + longest).square() + d * 2.0**-116


def _single(device: torch.device, d: int) -> torch.dtype:
    """float32, unless its products are rounded more coarsely or have so many terms that the bound says nothing."""
    backends: Any = torch.backends
    own = backends.cuda if device.type == "cuda" else backends.mkldnn
    exact = {own.matmul.fp32_precision, backends.fp32_precision} <= {"ieee", "none"}
    return torch.float32 if exact and d < 1 << 20 else torch.float64


Tool = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""Squared distances and columns of the k members nearest to each query, roughly."""


@cache
def _faiss() -> tuple[Any, Any]:
    """The module, and its handle of a GPU where there is one and the build knows it."""
    import faiss  # here, since most programs never search by it

    gpus = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
    return faiss, faiss.StandardGpuResources() if gpus else None


def _tool(backend: Backend, on_gpu: bool) -> Tool | None:
    """What proposes candidates; None is torch's products."""
    # Measured on one thread of an AMD processor with faiss-cpu, 2 048 queries among 20 000 x 1280: faiss takes about
    # nine tenths of torch's time where ties are rare (its BLAS is quicker there than torch's), but up to a third more
    # where a query has more near ties than the margin, since such rows are searched again by products. So on a
    # processor auto is torch, whose time depends less on the data; features on a GPU are never moved for faiss.
    if backend == "torch" or (backend == "auto" and on_gpu):
        return None
    faiss, gpu = _faiss()
    if backend == "auto" and gpu is None:
        return None

    def search(some: Tensor, block: Tensor, k: int) -> tuple[Tensor, Tensor]:
        a, b = (np.ascontiguousarray(t.float().cpu().numpy()) for t in (some, block))
        distances, columns = faiss.knn(a, b, k) if gpu is None else faiss.knn_gpu(gpu, a, b, k)
        return torch.from_numpy(distances).to(some.device), torch.from_numpy(columns).to(some.device)

    return search


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Some of the queries.

    Attributes:
        given: As the caller gave them.
        moved: In the space of products.
        norms: float64, of the moved ones.
        own: What each query is excluded as: a label, or a row of the gallery; None if nothing is excluded.
    """

    given: Tensor
    moved: Tensor
    norms: Tensor
    own: Tensor | None

    def take(self, rows: Tensor) -> _Chunk:
        own = None if self.own is None else self.own[rows]
        return _Chunk(self.given[rows], self.moved[rows], self.norms[rows], own)


@dataclass(frozen=True, eq=False)
class _Block:
    """Neighbouring members of the gallery.

    Attributes:
        start: Row of the first.
        moved: In the space of products, upright and perhaps flipped.
        norms: float64, of the moved ones.
        kinds: What each member counts as: its label, or its row.
        first: The first column of each label; None if each member is a label of its own.
    """

    start: int
    moved: list[Tensor]
    norms: list[Tensor]
    kinds: Tensor
    first: Tensor | None

    @property
    def longest(self) -> Tensor:
        return torch.stack([norms.max() for norms in self.norms]).max()


_Pairs = tuple[Tensor, Tensor, list[Tensor] | None]
"""Rows and columns; for each gallery, if there are two, in which pairs it may be the nearer one (None: in all)."""


@dataclass(frozen=True, eq=False)
class _Search:
    """Goes through tiles of queries times gallery and keeps the k nearest found so far."""

    queries: Tensor
    galleries: list[Tensor]
    labels: Tensor | None
    k: int
    exclude_self: bool
    space: _Space
    tool: Tool | None
    max_bytes: int

    # Of max_bytes, a quarter each is for a tile (16 bytes an entry), for the pairs compared by differences (128 bytes
    # each), and for rows in the space of products; the last is for rows of differences.

    @property
    def rows(self) -> int:
        """Queries at a time."""
        return max(1, min(len(self.queries), math.isqrt(self.max_bytes >> 6), self._most_rows))

    @property
    def _columns(self) -> int:
        return max(1, min(len(self.galleries[0]), (self.max_bytes >> 6) // self.rows, self._most_rows))

    @property
    def _most_rows(self) -> int:
        return self.max_bytes // (64 * max(1, self.queries.shape[1]))

    def nearest(self, where: slice) -> tuple[Tensor, Tensor]:
        """Distances and indices, as `Neighbors` has them, of these queries."""
        chunk = self._chunk(where)
        best = torch.full((len(chunk.given), self.k), torch.inf, dtype=torch.float64, device=chunk.given.device)
        index = torch.full_like(best, -1, dtype=torch.int64)
        buffers = [chunk.moved.new_empty(len(chunk.given) * self._columns) for _ in self.galleries]
        for start in range(0, len(self.galleries[0]) if len(chunk.given) else 0, self._columns):
            block = self._block(start)
            if self.labels is None and not (where.start - len(block.kinds) < start < where.stop):
                here = replace(chunk, own=None)
            else:
                here = chunk
            for row, column, sides in self._candidates(here, block, best[:, -1], buffers):
                value = self._by_difference(chunk.given, row, column + start, sides)
                self._keep(best, index, row, column + start, value)
        return (best / max(1, chunk.given.shape[1])).sqrt(), index

    def _chunk(self, where: slice) -> _Chunk:
        given, own = self.queries[where], None
        moved = self.space.of_rows(given)
        if self.exclude_self:
            own = self._kinds(where)
        return _Chunk(given, moved, torch.linalg.vector_norm(moved, dim=1, dtype=torch.float64), own)

    def _block(self, start: int) -> _Block:
        where, first = slice(start, min(start + self._columns, len(self.galleries[0]))), None
        moved = [self.space.of_rows(gallery[where]) for gallery in self.galleries]
        norms = [torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64) for rows in moved]
        kinds = self._kinds(where)
        if self.labels is not None and self.k > 1:
            first = _is_first(kinds).nonzero()[:, 0]
            first = None if len(first) == len(kinds) else first
        return _Block(start, moved, norms, kinds, first)

    def _kinds(self, where: slice) -> Tensor:
        if self.labels is None:
            return torch.arange(where.start, where.stop, device=self.queries.device)
        return self.labels[where]

    def _candidates(self, chunk: _Chunk, block: _Block, furthest: Tensor, buffers: list[Tensor]) -> Iterator[_Pairs]:
        """Every pair that may be among its row's k nearest, in pieces, rows and columns in this order.

        Args:
            chunk: Queries.
            block: Members.
            furthest: float64, squared distance of the k-th nearest found so far; infinite if there are fewer.
            buffers: Room for a tile for each gallery.
        """
        wanted = self.k + _MARGIN
        # Where faiss would return a good part of all members, its lists are longer than a tile and save nothing.
        if self.tool is None or 4 * wanted > len(block.kinds):
            yield from self._by_products(chunk, block, furthest, buffers)
            return
        error = self.space.error(chunk.norms, block.longest)
        found = [self.tool(chunk.moved, moved, wanted) for moved in block.moved]
        ends = torch.stack([squares[:, -1] for squares, _ in found]).amin(0)
        if chunk.own is not None:
            for squares, columns in found:
                squares.masked_fill_(block.kinds[columns] == chunk.own[:, None], torch.inf)
        bounds = []
        for squares, columns in found:
            if block.first is not None:
                squares = squares.where(_is_first(block.kinds[columns]), torch.inf)
            bounds.append(_kth(squares, self.k))
        limit = self._limit(torch.stack(bounds).amin(0), furthest, error).to(ends.dtype)
        complete = ends > limit
        pairs = []
        for squares, columns in found:
            row, place = ((squares <= limit[:, None]) & complete[:, None]).nonzero(as_tuple=True)
            pairs.append(row * len(block.kinds) + columns[row, place])
        pair = torch.cat(pairs).unique()
        for some in pair.split(self._pairs):
            yield some // len(block.kinds), some % len(block.kinds), None
        rest = (~complete).nonzero()[:, 0]
        if len(rest):
            for row, column, sides in self._by_products(chunk.take(rest), block, furthest[rest], buffers):
                yield rest[row], column, sides

    def _by_products(self, chunk: _Chunk, block: _Block, furthest: Tensor, buffers: list[Tensor]) -> Iterator[_Pairs]:
        """See `_candidates`. A tile holds squared distances less the query's squared norm."""
        shape = len(chunk.given), len(block.kinds)
        tiles = [buffer[: math.prod(shape)].view(shape) for buffer in buffers]
        for tile, moved, norms in zip(tiles, block.moved, block.norms, strict=True):
            torch.addmm(norms.square().to(tile.dtype), chunk.moved, moved.T, alpha=-2, out=tile)
        tile = tiles[0] if len(tiles) == 1 else torch.minimum(*tiles)
        if chunk.own is not None:
            tile.masked_fill_(block.kinds == chunk.own[:, None], torch.inf)
        error, square = self.space.error(chunk.norms, block.longest), chunk.norms.square()
        # Of a label's members any one bounds its distance from above; the first will do.
        bound = _kth(tile if block.first is None else tile[:, block.first], self.k).double() + square
        limit = (self._limit(bound, furthest, error) - square).to(tile.dtype)
        step = max(1, self._pairs // shape[1])
        for start in range(0, shape[0], step):
            rows = slice(start, start + step)
            row, column = (tile[rows] <= limit[rows, None]).nonzero(as_tuple=True)
            if len(row):
                near = [side[rows][row, column] <= limit[rows][row] for side in tiles] if len(tiles) > 1 else None
                yield row + start, column, near

    @property
    def _pairs(self) -> int:
        return max(1, self.max_bytes >> 9)

    def _limit(self, bound: Tensor, furthest: Tensor, error: Tensor) -> Tensor:
        """What products say, at most, of a member that is among the k nearest: never infinite, as excluded ones are.

        At least k members are within the bound by products, and within ``furthest`` by differences.
        """
        known = furthest * self.space.scale * self.space.scale
        return (torch.minimum(bound.double() + error, known) + error).clamp(max=torch.finfo(self.space.single).max)

    def _by_difference(self, given: Tensor, row: Tensor, column: Tensor, sides: list[Tensor] | None) -> Tensor:
        """Squared distances of pairs, of the sides that are asked for: another is too far to be the nearer one."""
        if sides is not None:
            found = torch.full((len(self.galleries), len(row)), torch.inf, dtype=torch.float64, device=given.device)
            for values, gallery, wanted in zip(found, self.galleries, sides, strict=True):
                values[wanted] = self._differences(given, [gallery], row[wanted], column[wanted])
            return found.amin(0)
        return self._differences(given, self.galleries, row, column)

    def _differences(self, given: Tensor, galleries: list[Tensor], row: Tensor, column: Tensor) -> Tensor:
        d = max(1, given.shape[1])
        # As many as fit a processor's cache: each is written and read several times.
        size = max(1, min((1 << 18) // d, self.max_bytes // (128 * d)))
        pieces = [torch.empty(0, dtype=torch.float64, device=given.device)]
        for i, j in zip(row.split(size), column.split(size), strict=True):
            query = given[i].double()
            squares = [_sums(gallery[j].double().sub_(query).square_()) for gallery in galleries]
            pieces.append(squares[0] if len(squares) == 1 else torch.minimum(*squares))
        return torch.cat(pieces)

    def _keep(self, best: Tensor, index: Tensor, row: Tensor, column: Tensor, value: Tensor) -> None:
        """Merges pairs into the k best; of each row they come in the order of their columns, after the known ones."""
        touched, local = row.unique_consecutive(return_inverse=True)
        known, place = (index[touched] >= 0).nonzero(as_tuple=True)
        row = torch.cat([known, local])
        column = torch.cat([index[touched[known], place], column])
        value = torch.cat([best[touched[known], place], value])
        order = value.sort(stable=True).indices
        order = order[row[order].sort(stable=True).indices]
        if self.labels is not None:
            order = order[_is_first(row[order] * len(self.labels) + self.labels[column[order]])]
        row, column, value = row[order], column[order], value[order]
        counts = row.bincount(minlength=len(touched))
        rank = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        kept = rank < self.k
        for old, new in ((best, value), (index, column)):
            fresh = old[touched]
            fresh[row[kept], rank[kept]] = new[kept]
            old[touched] = fresh


def _blocks(rows: Tensor, size: int) -> Iterator[Tensor]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _kth(squares: Tensor, k: int) -> Tensor:
    """The k-th smallest of each row; infinite if there are fewer."""
    if squares.shape[1] < k:
        return squares.new_full((len(squares),), torch.inf)
    return squares.amin(1) if k == 1 else squares.topk(k, dim=1, largest=False).values[:, -1]


def _is_first(values: Tensor) -> Tensor:
    """True where a value of the last dimension occurs for the first time."""
    found = values.sort(dim=-1, stable=True)
    new = torch.ones_like(values, dtype=torch.bool)
    new[..., 1:] = found.values[..., 1:] != found.values[..., :-1]
    return torch.empty_like(new).scatter_(-1, found.indices, new)


def _sums(values: Tensor) -> Tensor:
    """Sums of rows, which are overwritten: halves are added, so that no shape, thread or device changes the order."""
    if not values.shape[1]:
        return values.new_zeros(len(values))
    while (d := values.shape[1]) > 1:
        half = d // 2
        values[:, :half] += values[:, d - half :]
        values = values[:, : d - half]
    return values[:, 0].clone()
