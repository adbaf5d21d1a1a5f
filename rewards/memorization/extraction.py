"""Extraction: the share of prompts that keep generating the same image, and that image is a training image."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from rewards.calibration import Threshold, threshold, wilson
from rewards.errors import InputError
from rewards.estimate import Estimate
from rewards.metric import RewardMetric, check_setting
from rewards.reference import Reference
from rewards.sample import Sample

_STEPS = 100_000
"""Of one search for a clique: seconds at most."""

_ENTRIES = 1 << 22
"""Of a distance matrix held at once."""


def tile_distances(images: Tensor, others: Tensor, tiles: int = 4) -> Tensor:
    """Largest root mean square difference of two images' tiles, for all pairs.

    Carlini et al. 2023 (arXiv:2301.13188, section 4): L2 over the whole image calls two images on the same plain
    background alike; the worst tile does not. By products in double precision: a copy is at 0 within 1e-6.

    Args:
        images: ``(n, c, h, w)``, of any type.
        others: ``(m, c, h, w)``.
        tiles: How many along each side; it divides h and w.

    Returns:
        float64 ``(n, m)``, in the images' unit.

    Raises:
        InputError: If it does not divide them.
    """
    a, b = _cut(images.double(), tiles), _cut(others.double(), tiles)
    return _squares(a, b).clamp(min=0).sqrt()


def nearest_tile_distances(images: Tensor, train: Tensor, tiles: int = 4) -> Tensor:
    """`tile_distances` to the nearest training image or mirrored training image.

    Products in single precision propose; differences in double precision decide, so that a copy is at exactly 0.

    Args:
        images: ``(n, c, h, w)``, of any type.
        train: ``(m, c, h, w)``, m > 0.
        tiles: How many along each side.

    Returns:
        float64 ``(n,)``.
    """
    images, train = images.float(), train.float()
    # Distances stay, but norms become small, and rounding with them.
    centre = train.mean(0)
    galleries = [_cut(train - centre, tiles), _cut(train.flip(-1) - centre, tiles)]
    longest = torch.stack([_norms(gallery).amax(1) for gallery in galleries]).amax(0)
    terms = (galleries[0].shape[2] + 10) * torch.finfo(torch.float32).eps / 2
    rows = max(1, _ENTRIES // len(train))
    nearest = [_nearest(part, train, centre, galleries, longest, terms, tiles) for part in torch.split(images, rows)]
    return torch.cat(nearest)


def _nearest(
    images: Tensor, train: Tensor, centre: Tensor, galleries: list[Tensor], longest: Tensor, terms: float, tiles: int
) -> Tensor:
    cut = _cut(images - centre, tiles)
    squares = torch.stack([_squares(cut, gallery) for gallery in galleries])
    # How far one of them can be from the true one: see `neighbors`, whose products these are.
    error = terms / (1 - terms) * ((_norms(cut) + longest[:, None]).square() / cut.shape[2]).amax(0)
    limit = squares.amin((0, 2)) + 2 * error
    best = torch.full((len(images),), torch.inf, dtype=torch.float64)
    side, row, column = torch.nonzero(squares <= limit[:, None], as_tuple=True)
    for some in torch.split(torch.arange(len(row)), 256):
        seen = train[column[some]].double()
        seen = torch.where((side[some] == 1)[:, None, None, None], seen.flip(-1), seen)
        found = _cut(images[row[some]].double() - seen, tiles).square().mean(2).amax(0)
        best.scatter_reduce_(0, row[some], found, "amin")
    return best.sqrt()


def _cut(images: Tensor, tiles: int) -> Tensor:
    """``(tiles^2, n, pixels)``."""
    n, c, h, w = images.shape
    if h % tiles or w % tiles:
        raise InputError(
            f"{h} x {w} pixels are not cut into {tiles} x {tiles} tiles", f"set extraction.tiles to a divisor of {h}"
        )
    grid = images.reshape(n, c, tiles, h // tiles, tiles, w // tiles)
    return grid.permute(2, 4, 0, 1, 3, 5).reshape(tiles * tiles, n, -1)


def _norms(cut: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(cut, dim=2, dtype=torch.float64)
    return norms


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Mean square differences in the worst tile ``(n, m)``, maybe a little below 0."""
    worst = torch.full((a.shape[1], b.shape[1]), -torch.inf, dtype=a.dtype)
    for x, y in zip(a, b, strict=True):
        both = x.square().sum(1)[:, None] + y.square().sum(1)
        worst = torch.maximum(worst, both.addmm_(x, y.T, alpha=-2))
    squares: Tensor = worst / a.shape[2]
    return squares


def find_clique(linked: Tensor, size: int, steps: int = _STEPS) -> list[int] | None:
    """``size`` nodes that are all linked with each other, or None if there are none.

    First nodes with fewer than size - 1 links to others like them go (the k-core); then branch and bound, where
    colouring what may still be added bounds how much of it can be (Tomita and Seki 2003). Finding a clique is hard in
    the worst case, so that the search ends after a number of steps; what it had not found then counts as not there,
    which can only make `extraction` smaller.

    Args:
        linked: bool ``(n, n)``, symmetric; the diagonal does not matter.
        size: At least 1.
        steps: How many partial cliques are looked at.

    Returns:
        Rows, ascending: always the same ones for the same graph.
    """
    rows = _core(linked, size)
    if len(rows) < size:
        return None
    links = linked[rows][:, rows].tolist()
    neighbors = [sum(1 << j for j, there in enumerate(line) if there and j != i) for i, line in enumerate(links)]
    found = _Search(neighbors, size, steps).extend([], (1 << len(rows)) - 1)
    return None if found is None else sorted(int(rows[i]) for i in found)


def _core(linked: Tensor, size: int) -> Tensor:
    """Rows of the largest part in which each has size - 1 links to others."""
    rows = torch.arange(len(linked))
    others = linked & ~torch.eye(len(linked), dtype=torch.bool)
    while True:
        kept = others[rows][:, rows].sum(1) >= size - 1
        if bool(kept.all()):
            return rows
        rows = rows[kept]


class _Search:
    """Nodes are bits of an integer, and so are sets of them."""

    def __init__(self, neighbors: list[int], size: int, steps: int) -> None:
        self._neighbors, self._size, self._steps = neighbors, size, steps

    def extend(self, clique: list[int], candidates: int) -> list[int] | None:
        """The clique with as many candidates as it lacks; all of them are linked with all of it."""
        if len(clique) == self._size:
            return clique
        for node, colours in reversed(self._coloured(candidates)):
            # Of nodes of one colour no two are linked, and the nodes before this one have no further colours.
            if len(clique) + colours < self._size or not self._steps:
                return None
            self._steps -= 1
            found = self.extend([*clique, node], candidates & self._neighbors[node])
            if found is not None:
                return found
            candidates ^= 1 << node
        return None

    def _coloured(self, candidates: int) -> list[tuple[int, int]]:
        """Each candidate with the number of colours up to its own, ascending."""
        order: list[tuple[int, int]] = []
        colours = 0
        while candidates:
            colours += 1
            free = candidates
            while free:
                node = (free & -free).bit_length() - 1
                free &= ~self._neighbors[node] & ~(1 << node)
                candidates ^= 1 << node
                order.append((node, colours))
        return order


def _cliques(distances: Tensor, limit: float, size: int) -> Iterator[Tensor]:
    """Disjoint cliques, each as large as it can be made from one of that size: rows ``(k,)``."""
    # From the middle of the crowd outwards, so that the cliques do not depend on the order of the images.
    left = distances.sum(1).argsort(stable=True)
    linked = (distances < limit) | torch.eye(len(distances), dtype=torch.bool)
    while (found := find_clique(linked[left][:, left], size)) is not None:
        clique = left[found].tolist()
        for node in left.tolist():
            if node not in clique and bool(linked[node, clique].all()):
                clique.append(node)
        members = torch.tensor(clique)
        yield members
        left = left[~torch.isin(left, members)]


def extracted(
    prompts: Sequence[Hashable],
    generated: Tensor,
    train: Tensor,
    limit: float,
    *,
    clique: int = 10,
    tiles: int = 4,
) -> dict[Hashable, bool]:
    """Which prompts give a training image away.

    Carlini et al. 2023 (arXiv:2301.13188, section 4). The generations of one prompt are linked where they, or one of
    them and the other's mirror image, are nearer than the limit; a clique among them shows, without a look at the
    training set, that something is generated again and again. Its member nearest to the others, the medoid, is then
    compared with the training images: nearer than the limit is extracted. A clique that is not is taken out, and the
    rest searched again, since a prompt can keep generating more than one image. A chain of generations each near to the
    next is no clique, for the last may be far from the first.

    Args:
        prompts: n, one a generated image.
        generated: ``(n, c, h, w)``.
        train: ``(m, c, h, w)``; mirrored ones are looked at, too.
        limit: In the images' unit, see `extraction_threshold`.
        clique: The least size, at least 2.
        tiles: How many along each side.

    Returns:
        For each prompt with at least ``clique`` generations.

    Raises:
        ValueError: If there are not as many prompts as images.
    """
    enough = {prompt: rows for prompt, rows in _by_prompt(prompts).items() if len(rows) >= clique}
    if len(prompts) != len(generated):
        raise ValueError(f"one prompt a generated image, got {len(prompts)} and {len(generated)}")
    suspects: list[tuple[Hashable, int]] = []
    for prompt, places in enough.items():
        rows = torch.tensor(places)
        images = generated[rows].double()
        distances = torch.minimum(tile_distances(images, images, tiles), tile_distances(images, images.flip(-1), tiles))
        distances = torch.minimum(distances, distances.T).fill_diagonal_(0)
        for members in _cliques(distances, limit, clique):
            sums = distances[members][:, members].sum(1)
            suspects += [(prompt, row) for row in rows[members[sums == sums.min()]].tolist()]
    flagged = dict.fromkeys(enough, False)
    if suspects:
        nearest = nearest_tile_distances(generated[[row for _, row in suspects]], train, tiles)
        for (prompt, _), distance in zip(suspects, nearest.tolist(), strict=True):
            flagged[prompt] |= distance < limit
    return flagged


def _by_prompt(prompts: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    rows: dict[Hashable, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    return rows


def extraction_threshold(heldout: Tensor, train: Tensor, rate: float = 0.01, tiles: int = 4) -> Threshold:
    """The distance to the nearest training image below which no more than a share ``rate`` of held-out images falls."""
    return threshold(nearest_tile_distances(heldout, train, tiles), rate)


def extraction(
    prompts: Sequence[Hashable],
    generated: Tensor,
    train: Tensor,
    limit: float,
    *,
    clique: int = 10,
    tiles: int = 4,
) -> Estimate:
    """The share of prompts that are `extracted`, with Wilson's interval; n is the number of prompts looked at."""
    flagged = extracted(prompts, generated, train, limit, clique=clique, tiles=tiles)
    return wilson(sum(flagged.values()), len(flagged))


class Extraction(RewardMetric):
    """`extraction` of images given in pieces.

    Images are compared as the embedding ``pixels`` has them: 64 x 64, in [0, 1]. Its null takes held-out images for the
    generations of one prompt, and is 0 or 1: where they hold no clique at all, nor do any groups of them.

    Args:
        rate: Share of held-out images nearer to their nearest training images than the limit, above 0 and below 1.
        clique: The least size, at least 2.
        tiles: How many along each side, a divisor of 64.
    """

    name = "extraction"
    higher_is_better = False
    needs = frozenset({"images", "prompts"})
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    generated: list[Tensor]
    prompts: list[Tensor]
    members: list[Tensor]
    others: list[Tensor]

    def __init__(self, rate: float = 0.01, clique: int = 10, tiles: int = 4) -> None:
        super().__init__(["pixels"])
        check_setting("extraction.rate", rate, 0, 1)
        if clique < 2:
            raise InputError(f"extraction.clique={clique}", "set it to 2 or more")
        if tiles < 1:
            raise InputError(f"extraction.tiles={tiles}", "set it to 1 or more")
        self.rate, self.clique, self.tiles = rate, clique, tiles
        for state in ("generated", "prompts", "members", "others"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(
        self, images: Tensor, kind: Literal["generated", "heldout", "train"], prompts: Sequence[str] | None = None
    ) -> None:
        """Adds images ``(n, c, h, w)`` of one kind; generated ones with their n prompts.

        Raises:
            ValueError: If other images have prompts, or generated ones not as many as they are.
        """
        if (prompts is None) == (kind == "generated") or (prompts is not None and len(prompts) != len(images)):
            raise ValueError(f"generated images alone have prompts, one each, got {prompts} with {kind}")
        {"generated": self.generated, "heldout": self.others, "train": self.members}[kind].append(images)
        if prompts is not None:
            # torchmetrics' states are tensors.
            digests = [hashlib.sha256(prompt.encode()).digest()[:8] for prompt in prompts]
            self.prompts.append(torch.tensor([int.from_bytes(d, signed=True) for d in digests], dtype=torch.int64))

    def compute(self) -> Tensor:
        """The value so far."""
        generated, prompts, train, others = (
            dim_zero_cat(state) for state in (self.generated, self.prompts, self.members, self.others)
        )
        limit = extraction_threshold(others, train, self.rate, self.tiles).value
        return torch.tensor(self._extraction(prompts.tolist(), generated, train, limit).value)

    def shortfall(self, sample: Sample) -> str:
        """See `RewardMetric`."""
        most = max(len(rows) for rows in _by_prompt(_prompts(sample)).values())
        return f"needs {self.clique} generated images of one prompt, got {most}" if most < self.clique else ""

    def estimate(self, sample: Sample) -> Estimate:
        """See `RewardMetric`."""
        generated, train = (_images(x["pixels"]) for x in (sample.features, sample.reference.train))
        return self._extraction(_prompts(sample), generated, train, self._limit(sample.reference))

    def null(self, reference: Reference) -> float | None:
        """See `RewardMetric`."""
        if reference.judge_size < self.clique:
            return None
        heldout, train = (_images(x["pixels"]) for x in (reference.judge, reference.train))
        return self._extraction([""] * len(heldout), heldout, train, self._limit(reference)).value

    def _extraction(self, prompts: Sequence[Hashable], generated: Tensor, train: Tensor, limit: float) -> Estimate:
        return extraction(prompts, generated, train, limit, clique=self.clique, tiles=self.tiles)

    def _limit(self, reference: Reference) -> float:
        known = _LIMITS.setdefault(reference, {})
        if (self.rate, self.tiles) not in known:
            heldout, train = (_images(x["pixels"]) for x in (reference.judge, reference.train))
            known[self.rate, self.tiles] = extraction_threshold(heldout, train, self.rate, self.tiles).value
        return known[self.rate, self.tiles]


_LIMITS: WeakKeyDictionary[Reference, dict[tuple[float, int], float]] = WeakKeyDictionary()
"""It takes seconds, and is the same for every model of a task."""


def _prompts(sample: Sample) -> Sequence[str]:
    prompts = sample.evidence.prompts
    assert prompts is not None
    return prompts


def _images(pixels: Tensor) -> Tensor:
    """Features ``(n, 3 s s)`` as images ``(n, 3, s, s)``."""
    size = math.isqrt(pixels.shape[1] // 3)
    return pixels.reshape(-1, 3, size, size)
