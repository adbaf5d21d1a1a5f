"""Generated images beside their nearest training images. Private: shown only when asked for."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.tensorboard.writer import SummaryWriter

from agents.workbench import Workbench
from envs.task import Schedule
from rewards.features import embedding
from rewards.neighbors import nearest_neighbors

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_PAIRS = 24


def show_images(folder: Path, bench: Workbench, schedule: Schedule) -> None:
    """Fine-tunes once more and writes ``figures/closest_pairs.png`` and the same grid to TensorBoard.

    Pairs are ordered by pixel distance, the closest first.
    """
    if bench.dataset is None or bench.make_factory is None:
        return
    evaluator = bench.make_factory(bench.final)(0)
    generated, train = evaluator.images(schedule), bench.dataset.train.images
    pixels = embedding("pixels")
    as_tensor = [torch.from_numpy(images).permute(0, 3, 1, 2).contiguous() for images in (generated, train)]
    found = nearest_neighbors(pixels(as_tensor[0]), pixels(as_tensor[1]), flipped_gallery=pixels(as_tensor[1].flip(-1)))
    order = found.distances[:, 0].argsort()[:_PAIRS].tolist()
    pairs = [(generated[i], train[int(found.indices[i, 0])], float(found.distances[i, 0])) for i in order]
    (folder / "figures").mkdir(exist_ok=True)
    _draw(pairs, folder / "figures" / "closest_pairs.png")
    grid = np.concatenate([np.concatenate([g, t], axis=0) for g, t, _ in pairs], axis=1)
    # A folder of its own: two writers in one folder lose events (tensorboard#1011).
    with SummaryWriter(str(folder / "tensorboard" / "images")) as writer:
        writer.add_image("generated over nearest training image", grid, dataformats="HWC")


def _draw(pairs: list[tuple[NDArray[np.uint8], NDArray[np.uint8], float]], path: Path) -> None:
    columns = 8
    rows = -(-len(pairs) // columns)
    figure, axes = plt.subplots(2 * rows, columns, figsize=(1.3 * columns, 2.9 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for k, (generated, train, distance) in enumerate(pairs):
        row, column = 2 * (k // columns), k % columns
        axes[row, column].imshow(generated)
        axes[row, column].set_title(f"{distance:.3f}", fontsize=8)
        axes[row + 1, column].imshow(train)
    figure.suptitle("Generated (with pixel distance) over the nearest training image", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
