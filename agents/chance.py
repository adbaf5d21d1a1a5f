"""Keeps what a library draws from the process's own random numbers to itself."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def chance_of_its_own() -> Iterator[None]:
    """Puts the global generators of Python, NumPy and torch (on the CPU) back as they were.

    Stable-baselines3 seeds and uses them: a caller's own draws would go on from the seed of whoever practised last.
    """
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  # the one that SB3 draws from
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
