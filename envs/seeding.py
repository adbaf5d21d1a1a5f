"""Independent random streams from one seed and a purpose, so that adding one stream never shifts another."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for a purpose, the same on every machine."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def torch_generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for a purpose: numbers drawn on the CPU are the same whatever device they go to."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))
