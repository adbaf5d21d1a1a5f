"""Data copying (C_T): are generated images nearer to the training set than held-out ones, place by place?"""

from __future__ import annotations

import warnings

import torch
from scipy.cluster.vq import kmeans2, vq
from scipy.linalg import eigh
from scipy.stats import rankdata
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from rewards.alignment import ALIGNED_PIXELS
from rewards.calibration import halves, normal
from rewards.errors import InputError
from rewards.estimate import Estimate
from rewards.metric import RewardMetric
from rewards.reference import Reference
from rewards.sample import Sample

_GENERATED, _HELDOUT = 20, 2
"""What a cell needs: images enough for the statistic to be nearly normal, and for its variance to be estimated."""

_DIMENSIONS = 64


def data_copying(generated: Tensor, heldout: Tensor, generated_cells: Tensor, heldout_cells: Tensor) -> Estimate:
    """Mean over cells of a Mann-Whitney z score of generated against held-out images' distances to the training set.

    Meehan et al. 2020 (arXiv:2004.05675), C_T: in each cell, U is the number of pairs in which the generated
    image is the further one, ties counted half; z is U less its mean, over its standard deviation with correction for
    ties, both for two samples of one distribution; z of a cell in which all distances are equal is 0. Cells weigh as
    much as they have held-out images. Cells with less than a share 20 / n of the n generated images, or with less than
    2 held-out ones, are left out. Far below 0 is copying, around 0 neither, far above 0 underfitting: generated images
    unlike anything real score best. z grows with the square root of the number of images: compare at equal sizes.

    The interval is one for C_T's expectation, not the test's region around 0: U's variance is estimated in each cell
    (DeLong et al. 1988, Biometrics 44:837) and not taken for that of equal distributions; cells are taken as given. It
    has no width where the two are apart in every cell.

    Args:
        generated: Float ``(n,)``: from generated images to their nearest training images.
        heldout: Float ``(m,)``: the same of held-out images.
        generated_cells: int64 ``(n,)``: which cell each is in, see `cells`.
        heldout_cells: int64 ``(m,)``.

    Returns:
        n is the number of generated images in the cells that count.

    Raises:
        ValueError: If none does.
    """
    used = _used(generated_cells, heldout_cells)
    if not used:
        raise ValueError(f"no cell has {_GENERATED} generated and {_HELDOUT} held-out images")
    pairs = [(generated[generated_cells == cell], heldout[heldout_cells == cell]) for cell in used]
    total = sum(len(b) for _, b in pairs)
    value = variance = 0.0
    for a, b in pairs:
        weight = len(b) / total
        score, spread = _z_score(a.double(), b.double())
        value += weight * score
        variance += weight**2 * spread
    return normal(value, variance, sum(len(a) for a, _ in pairs))


def _z_score(a: Tensor, b: Tensor) -> tuple[float, float]:
    """The score of "a is larger", and its estimated variance."""
    n, m = len(a), len(b)
    every = torch.cat([a, b])
    ranks = torch.from_numpy(rankdata(every.numpy()))
    above = ranks[:n] - torch.from_numpy(rankdata(a.numpy()))
    below = ranks[n:] - torch.from_numpy(rankdata(b.numpy()))
    tied = every.unique(return_counts=True)[1].double()
    size = n + m
    expected = n * m / 12 * (size + 1 - float((tied**3 - tied).sum()) / (size * (size - 1)))
    if len(tied) == 1:
        return 0.0, 0.0
    estimated = n * float(above.var()) + m * float(below.var())
    return (float(above.sum()) - n * m / 2) / expected**0.5, estimated / expected


def _used(generated_cells: Tensor, heldout_cells: Tensor) -> list[int]:
    counts = _counts(generated_cells, heldout_cells)
    return [cell for cell, (a, b) in enumerate(counts) if a >= _GENERATED and b >= _HELDOUT]


def _counts(generated_cells: Tensor, heldout_cells: Tensor) -> list[tuple[int, int]]:
    number = int(torch.cat([generated_cells, heldout_cells]).max()) + 1
    counts = (cells.bincount(minlength=number).tolist() for cells in (generated_cells, heldout_cells))
    return list(zip(*counts, strict=True))


def cells(train: Tensor, *others: Tensor, count: int = 3) -> list[Tensor]:
    """Which of the training set's k-means cells each of the other images is in.

    On the features' first 64 principal components (of the training set), from a start drawn with a fixed seed: the same
    arguments give the same cells.

    Args:
        train: Float ``(t, d)`` features, t > 0.
        others: Float ``(n, d)`` each.
        count: k; fewer if fewer training images differ.

    Returns:
        int64 ``(n,)`` in [0, k), for each of the others.
    """
    count = min(count, len(train.unique(dim=0)))
    if count == 1:
        return [torch.zeros(len(other), dtype=torch.int64) for other in others]
    mean = train.mean(0)
    axes = _axes(train - mean)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "One of the clusters is empty", UserWarning)  # a cell less does no harm
        centres, _ = kmeans2(((train - mean) @ axes).double().numpy(), count, iter=100, minit="++", rng=0)
    return [torch.from_numpy(vq(((x - mean) @ axes).double().numpy(), centres)[0]).long() for x in others]


def _axes(centred: Tensor) -> Tensor:
    """Orthonormal ``(d, <= 64)``: the principal axes of rows ``(t, d)``."""
    t, d = centred.shape
    if d <= _DIMENSIONS:
        return torch.eye(d)
    # The smaller of the two products has the same eigenvalues, apart from zeros.
    product = centred @ centred.T if t < d else centred.T @ centred
    size = len(product)
    top = max(0, size - _DIMENSIONS), size - 1
    values, vectors = (torch.from_numpy(x) for x in eigh(product.double().numpy(), subset_by_index=top))
    kept = values > 1e-6 * values[-1]
    if t >= d:
        return vectors[:, kept].to(centred.dtype)
    return centred.T @ (vectors[:, kept] / values[kept].sqrt()).to(centred.dtype)


class DataCopying(RewardMetric):
    """`data_copying` of distances given in pieces.

    Distances are those to the nearest of all training images, in or out of the cell. Its null is one half of the
    held-out images in place of generated ones, against the other half: near 0, and on fewer images than the value.

    Args:
        distance: What is measured: an embedding's name, or ``aligned_pixels``.
        embedding: What cells are made of.
        cells: How many, at least 1.

    Example:
        >>> import torch
        >>> metric = DataCopying()
        >>> cells = torch.zeros(20, dtype=torch.int64)
        >>> metric.update(torch.linspace(1, 2, 20), cells, heldout=True)
        >>> metric.update(torch.linspace(0, 1, 20), cells, heldout=False)
        >>> metric.compute()
        tensor(-5.3967)
    """

    name = "data_copying"
    higher_is_better = True

    generated: list[Tensor]
    generated_cells: list[Tensor]
    others: list[Tensor]
    others_cells: list[Tensor]

    def __init__(self, distance: str = ALIGNED_PIXELS, embedding: str = "pixels_32", cells: int = 3) -> None:
        super().__init__([embedding], [distance])
        if cells < 1:
            raise InputError(f"data_copying.cells={cells}", "set it to 1 or more")
        self.cells = cells
        for state in ("generated", "generated_cells", "others", "others_cells"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(self, distances: Tensor, cells: Tensor, heldout: bool) -> None:
        """Adds distances ``(n,)`` and cells int64 ``(n,)`` of held-out or of generated images."""
        (self.others if heldout else self.generated).append(distances)
        (self.others_cells if heldout else self.generated_cells).append(cells)

    def compute(self) -> Tensor:
        """The value so far."""
        states = self.generated, self.others, self.generated_cells, self.others_cells
        return torch.tensor(data_copying(*(dim_zero_cat(state) for state in states)).value)

    def shortfall(self, sample: Sample) -> str:
        """See `RewardMetric`."""
        found = self._sample_cells(sample)
        if _used(*found):
            return ""
        return f"needs {_GENERATED} generated and {_HELDOUT} held-out images in one cell, got {_counts(*found)}"

    def estimate(self, sample: Sample) -> Estimate:
        """See `RewardMetric`."""
        distances = sample.neighbors[self.distances[0]].distances[:, 0]
        return data_copying(distances, sample.reference.null_distances(self.distances[0]), *self._sample_cells(sample))

    def null(self, reference: Reference) -> float | None:
        """See `RewardMetric`."""
        first, second = halves(torch.arange(reference.judge_size))
        distances = reference.null_distances(self.distances[0])
        (of,) = cells(reference.train[self.embeddings[0]], reference.judge[self.embeddings[0]], count=self.cells)
        enough = len(first) and _used(of[first], of[second])
        return data_copying(distances[first], distances[second], of[first], of[second]).value if enough else None

    def _sample_cells(self, sample: Sample) -> list[Tensor]:
        (name,), reference = self.embeddings, sample.reference
        return cells(reference.train[name], sample.features[name], reference.judge[name], count=self.cells)
