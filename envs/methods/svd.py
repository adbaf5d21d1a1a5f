"""Singular value decompositions, kept on disk by the content of the matrix."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

_VERSION = "svd 1"
# Below this an SVD takes no longer than a file.
_KEEP_FROM = 64 * 64


class Basis(NamedTuple):
    """A matrix as U S V^T, thin.

    Attributes:
        u: ``(m, r)``.
        s: ``(r,)``, descending.
        vh: ``(r, n)``.
    """

    u: Tensor
    s: Tensor
    vh: Tensor


def cache_folder() -> Path:
    """Where computed things are kept: ``$MEMCONTROL_CACHE``, or ``memcontrol`` in the user's cache folder (XDG)."""
    given = os.environ.get("MEMCONTROL_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memcontrol"


def decomposed(matrix: Tensor) -> Basis:
    """The thin SVD of a matrix, from disk if it was computed before, in the matrix's type and on its device.

    A file that is damaged is computed anew. A folder that cannot be written costs time only.
    """
    m, n = matrix.shape
    rank = min(m, n)
    if matrix.is_meta:
        return Basis(*(matrix.new_empty(shape) for shape in ((m, rank), (rank,), (rank, n))))
    exact = matrix.detach().to("cpu", torch.float32).contiguous()
    if matrix.numel() < _KEEP_FROM:
        basis = _computed(exact)
    else:
        file = cache_folder() / "svd" / f"{_key(exact)}.safetensors"
        basis = _read(file, (m, n)) or _written(file, _computed(exact))
    return Basis(*(part.to(matrix.device, matrix.dtype) for part in basis))


def _computed(matrix: Tensor) -> Basis:
    return Basis(*(part.contiguous() for part in torch.linalg.svd(matrix, full_matrices=False)))


def _key(matrix: Tensor) -> str:
    digest = hashlib.sha256(f"{_VERSION} {tuple(matrix.shape)}".encode())
    digest.update(matrix.numpy().data)
    return digest.hexdigest()


def _checksum(basis: Basis) -> str:
    digest = hashlib.sha256()
    for part in basis:
        digest.update(part.numpy().data)
    return digest.hexdigest()


def _read(file: Path, shape: tuple[int, int]) -> Basis | None:
    """What the file holds; None if it is not there, or not what was written."""
    try:
        with safe_open(file, framework="pt") as content:
            basis = Basis(*(content.get_tensor(name).contiguous() for name in Basis._fields))
            checksum = (content.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    m, n = shape
    whole = (tuple(basis.u.shape), tuple(basis.vh.shape)) == ((m, min(m, n)), (min(m, n), n))
    return basis if whole and checksum == _checksum(basis) else None


def _written(file: Path, basis: Basis) -> Basis:
    content = save(basis._asdict(), metadata={"sha256": _checksum(basis)})
    temporary: str | None = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Several workers may write the same file: each writes its own, and the last one stays.
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
            temporary = part.name
            part.write(content)
        Path(temporary).replace(file)
    except OSError as error:
        logging.getLogger(__name__).warning("decompositions are not kept: %s", error)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return basis
