"""Training state on disk, replaced in one rename so that a kill leaves the previous one whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch


class Stateful(Protocol):
    """What modules and optimizers have in common."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that has to be saved."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Takes back what `state_dict` gave."""
        ...


class Checkpoint:
    """Named modules and optimizers with a step count and the seconds spent."""

    def __init__(self, path: Path, **parts: Stateful) -> None:
        self.path, self.parts = path, parts

    def load(self) -> tuple[int, float]:
        """Restores every part and returns ``(step, seconds)``; ``(0, 0.0)`` if there is nothing to restore."""
        if not self.path.exists():
            return 0, 0.0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return int(state["step"]), float(state["seconds"])

    def save(self, step: int, seconds: float) -> None:
        """Writes every part with the step count and the seconds spent so far."""
        state: dict[str, Any] = {name: part.state_dict() for name, part in self.parts.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        torch.save(state | {"step": step, "seconds": seconds}, partial)
        partial.replace(self.path)
