"""What a long fine-tune went through: kept for its checkpoints and its result, shown in TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.tensorboard.writer import SummaryWriter

from agents.finetuning.trainer import StepRecord
from rewards.measurement import Measurement


class Curves:
    """Training and validation by step.

    Args:
        folder: Of the run: curves go to ``tensorboard/``, grids of generated images also to ``figures/``.
        history: What `history` was at a checkpoint; it is shown again.
    """

    def __init__(self, folder: Path, history: Mapping[str, Any] | None = None) -> None:
        self._figures = folder / "figures"
        self._writer = SummaryWriter(str(folder / "tensorboard"))
        self.history: dict[str, Any] = {"training": [], "validation": [], "seconds": 0.0}
        if history is not None:
            for row in history["training"]:
                self.trained(StepRecord(*row))
            for row in history["validation"]:
                metrics = {name: Measurement.from_json(fields) for name, fields in row["metrics"].items()}
                self.validated(row["step"], metrics, _grid_of(self._path(row["step"])), 0.0)
            self.history["seconds"] = history["seconds"]

    def trained(self, record: StepRecord) -> None:
        """Adds a step."""
        self.history["training"].append(list(record))
        for name, value in zip(record._fields[1:], record[1:], strict=True):
            if value is not None:
                self._writer.add_scalar(f"training/{name}", value, record.step)

    def validated(
        self, step: int, metrics: Mapping[str, Measurement], grid: NDArray[np.uint8] | None, seconds: float
    ) -> None:
        """Adds a validation.

        Args:
            step: Steps taken before it.
            metrics: What was measured.
            grid: Generated images as one, ``(height, width, 3)``; None for none.
            seconds: That it took.
        """
        self.history["validation"].append({"step": step, "metrics": {n: m.to_json() for n, m in metrics.items()}})
        self.history["seconds"] += seconds
        for name, measured in metrics.items():
            for what, value in (("value", measured.value), ("null", measured.null)):
                if value is not None:
                    self._writer.add_scalar(f"validation/{name}/{what}", value, step)
        if grid is not None:
            self._figures.mkdir(exist_ok=True)
            Image.fromarray(grid).save(self._path(step))
            self._writer.add_image("samples", grid, step, dataformats="HWC")
        self._writer.flush()

    def has_validated(self, step: int) -> bool:
        """True if there is a validation after so many steps."""
        return any(row["step"] == step for row in self.history["validation"])

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()

    def _path(self, step: int) -> Path:
        return self._figures / f"samples-{step:08d}.png"


def tiled(images: NDArray[np.uint8], most: int) -> NDArray[np.uint8]:
    """The first images, ``(n, h, w, 3)``, as one nearly square picture; what is left of it is black."""
    shown = images[:most]
    columns = math.ceil(math.sqrt(len(shown)))
    rows = -(-len(shown) // columns)
    blank = np.zeros((rows * columns - len(shown), *images.shape[1:]), dtype=np.uint8)
    height, width, channels = images.shape[1:]
    cells = np.concatenate([shown, blank]).reshape(rows, columns, height, width, channels)
    return cells.swapaxes(1, 2).reshape(rows * height, columns * width, channels)


def _grid_of(path: Path) -> NDArray[np.uint8] | None:
    if not path.is_file():
        return None
    with Image.open(path) as image:
        return np.asarray(image)
