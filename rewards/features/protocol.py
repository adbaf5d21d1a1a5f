"""What every embedding is, whatever computes it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Embedding(Protocol):
    """Turns images into feature vectors. One image's features depend on that image alone, to the last bit."""

    @property
    def name(self) -> str:
        """What metrics' settings and reports call it."""
        ...

    @property
    def dimensions(self) -> int:
        """Length d of a feature vector."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hexadecimal that changes with the weights and with the preprocessing, and does not with paths."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 ``(n, 3, h, w)`` to float32 ``(n, d)``, on the CPU.

        Raises:
            InputError: If a feature is NaN or infinite.
            ValueError: If ``images`` has another shape or type.
        """
        ...
