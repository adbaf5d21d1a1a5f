from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from envs.backbones.latent import LatentBackbone
from envs.batches import TrainingSet
from envs.losses import denoising_losses
from envs.seeding import torch_generator
from envs.task_probes import TaskProbes, probe_task


def drawn(n: int, purpose: str) -> NDArray[np.uint8]:
    generator = torch_generator(0, purpose)
    return torch.randint(256, (n, 64, 64, 3), dtype=torch.uint8, generator=generator).numpy()


def encoded(backbone: LatentBackbone, n: int, purpose: str) -> TrainingSet:
    latents = torch.randn(n, *backbone.latent_shape, generator=torch_generator(0, purpose))
    return TrainingSet(latents, backbone.encode_captions([""] * n), torch.empty(0))


def probes(backbone: LatentBackbone, train: NDArray[np.uint8], heldout: NDArray[np.uint8]) -> TaskProbes:
    few = encoded(backbone, 2, "train"), encoded(backbone, 3, "others")
    return probe_task(backbone, *few, train, heldout, draws=2, seed=5)


def test_losses_and_distances(backbone: LatentBackbone) -> None:
    train, heldout = drawn(5, "train"), drawn(3, "others")
    found = probes(backbone, train, heldout)
    for loss, data in (
        (found.loss_train, encoded(backbone, 2, "train")),
        (found.loss_heldout, encoded(backbone, 3, "others")),
    ):
        each = denoising_losses(backbone, data.latents, data.states, draws=2, seed=5)
        assert loss == pytest.approx(each.numpy().mean())

    def distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
        x, y = a.astype(float) / 255, b.astype(float) / 255
        return float(min(np.sqrt(((x - other) ** 2).mean()) for other in (y, y[:, ::-1])))

    between = [min(distance(x, y) for y in np.delete(train, i, axis=0)) for i, x in enumerate(train)]
    across = [min(distance(x, y) for y in train) for x in heldout]
    assert found.nearest_train == pytest.approx(np.median(between), rel=1e-5)
    assert found.nearest_heldout == pytest.approx(np.median(across), rel=1e-5)


def test_a_mirrored_copy_is_near(backbone: LatentBackbone) -> None:
    train = drawn(3, "train")
    assert probes(backbone, train, np.ascontiguousarray(train[:, :, ::-1])).nearest_heldout == 0


def test_one_image_has_no_other(backbone: LatentBackbone) -> None:
    assert probes(backbone, drawn(1, "train"), drawn(2, "others")).nearest_train is None
