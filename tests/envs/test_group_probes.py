"""Probes of groups, compared with loops over single parameters and single images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from envs.backbones.latent import LatentBackbone
from envs.batches import TrainingSet
from envs.group_probes import GroupProbes, probe_groups
from envs.groups import find_groups
from envs.seeding import torch_generator


def images(backbone: LatentBackbone, n: int, purpose: str) -> TrainingSet:
    latents = torch.randn(n, *backbone.latent_shape, generator=torch_generator(0, purpose))
    return TrainingSet(latents, backbone.encode_captions([f"image {i}" for i in range(n)]), torch.empty(0))


def probes(backbone: LatentBackbone, scheme: str = "blocks", *, seed: int = 0, heldout: int = 2) -> GroupProbes:
    groups = find_groups(backbone.denoiser, scheme)
    return probe_groups(backbone, groups, images(backbone, 3, "train"), images(backbone, heldout, "others"), seed=seed)


def each_gradient(
    backbone: LatentBackbone, data: TrainingSet, pairs: int, seed: int, names: Sequence[str]
) -> NDArray[np.float64]:
    """Of each image's loss, ``(images, numbers)``, taken for one parameter after another."""
    generator = torch_generator(seed, "group probes")
    midpoints = [(int(k) + 0.5) * backbone.timesteps / pairs for k in torch.randperm(pairs, generator=generator)]
    noise = torch.randn(pairs, *backbone.latent_shape, generator=generator)
    found = []
    for i in range(len(data.latents)):
        t = torch.tensor([int(midpoints[i])])
        noisy, target = backbone.noised(data.latents[[i]], noise[[i]], t)
        of_one = []
        for name in names:
            parameter = backbone.denoiser.get_parameter(name).requires_grad_(True)
            loss = (backbone.predict(noisy, t, data.states[[i]]) - target).square().mean()
            of_one.append(torch.autograd.grad(loss, parameter)[0].double().numpy().ravel())
            parameter.requires_grad_(False)
        found.append(np.concatenate(of_one))
    return np.stack(found)


def test_probes_are_those_of_a_loop_over_parameters(backbone: LatentBackbone) -> None:
    found = probes(backbone, seed=7)
    groups = find_groups(backbone.denoiser, "blocks")
    for i in (0, len(groups) - 1):
        inside = [name for name, _ in groups[i].parameters_in(backbone.denoiser)]
        train = each_gradient(backbone, images(backbone, 3, "train"), 3, 7, inside)
        heldout = each_gradient(backbone, images(backbone, 2, "others"), 3, 7, inside)
        means = train.mean(axis=0), heldout.mean(axis=0)
        norms = [np.linalg.norm(mean) for mean in means]
        weights = np.concatenate([backbone.denoiser.get_parameter(n).double().numpy().ravel() for n in inside])
        assert found.groups[i] == pytest.approx(
            (
                len(weights),
                np.linalg.norm(weights),
                *norms,
                *((v**2).sum(axis=1).mean() for v in (train, heldout)),
                means[0] @ means[1] / (norms[0] * norms[1]),
            ),
            rel=1e-3,
        )


def test_the_denoiser_is_the_sum_of_its_groups(backbone: LatentBackbone) -> None:
    found = probes(backbone)
    groups = np.asarray(found.groups)
    whole = np.asarray(found.denoiser)
    np.testing.assert_allclose(groups[:, [0, 4, 5]].sum(axis=0), whole[[0, 4, 5]])
    np.testing.assert_allclose((groups[:, 1:4] ** 2).sum(axis=0), whole[1:4] ** 2)
    products = groups[:, 2] * groups[:, 3] * groups[:, 6]
    assert products.sum() == pytest.approx(whole[2] * whole[3] * whole[6])


def test_the_same_images_pull_the_same_way(backbone: LatentBackbone) -> None:
    """Common random numbers: without them two passes over the same images would differ."""
    same = images(backbone, 3, "train")
    found = probe_groups(backbone, find_groups(backbone.denoiser, "blocks"), same, same, seed=0)
    for probe in found.groups:
        assert probe.gradient_cosine == pytest.approx(1)
        assert probe.gradient_norm_train == probe.gradient_norm_heldout
        assert probe.fisher_trace_train == probe.fisher_trace_heldout >= probe.gradient_norm_train**2


def test_groups_of_kinds_add_up_to_blocks(backbone: LatentBackbone) -> None:
    blocks, kinds = probes(backbone), probes(backbone, "block_kinds")
    names = [group.name for group in find_groups(backbone.denoiser, "block_kinds")]
    inside = [p for name, p in zip(names, kinds.groups, strict=True) if name.startswith("mid_block ")]
    assert len(inside) == 4
    (whole,) = [
        p
        for group, p in zip(find_groups(backbone.denoiser, "blocks"), blocks.groups, strict=True)
        if group.name == "mid_block"
    ]
    assert sum(p.parameters for p in inside) == whole.parameters
    assert sum(p.fisher_trace_heldout for p in inside) == pytest.approx(whole.fisher_trace_heldout)
    assert sum(p.gradient_norm_train**2 for p in inside) == pytest.approx(whole.gradient_norm_train**2)


def test_the_denoiser_stays_as_it_was(backbone: LatentBackbone) -> None:
    denoiser = backbone.denoiser
    tensors = [*denoiser.named_parameters(), *denoiser.named_buffers()]
    before = {name: tensor.clone() for name, tensor in tensors}
    random_state = torch.random.get_rng_state()
    first, second = probes(backbone, seed=1), probes(backbone, seed=1)
    assert first == second != probes(backbone, seed=2)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors)
    assert not any(p.requires_grad or p.grad is not None for p in denoiser.parameters())
