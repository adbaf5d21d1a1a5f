"""What the base model's gradients say about each layer group before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from envs.backbones.base import Backbone
from envs.batches import TrainingSet
from envs.groups import LayerGroup
from envs.seeding import torch_generator


class Probe(NamedTuple):
    """Of a set of the base model's own parameters.

    Attributes:
        parameters: How many numbers.
        weight_norm: L2 norm of their values.
        gradient_norm_train: L2 norm of the denoising loss's gradient, mean over training images.
        gradient_norm_heldout: The same of held-out images.
        fisher_trace_train: Mean over training images of the squared L2 norm of the gradient of one image's loss.
        fisher_trace_heldout: The same of held-out images.
        gradient_cosine: Between the two mean gradients, in [-1, 1]; 0 if one of them is 0.
    """

    parameters: int
    weight_norm: float
    gradient_norm_train: float
    gradient_norm_heldout: float
    fisher_trace_train: float
    fisher_trace_heldout: float
    gradient_cosine: float


@dataclass(frozen=True)
class GroupProbes:
    """What `probe_groups` measured.

    Attributes:
        groups: One probe a group, in order.
        denoiser: Of all parameters, to compare with.
    """

    groups: tuple[Probe, ...]
    denoiser: Probe


def probe_groups(
    backbone: Backbone,
    groups: Sequence[LayerGroup],
    train: TrainingSet,
    heldout: TrainingSet,
    *,
    seed: int,
) -> GroupProbes:
    """Measures gradients of the base model on training and on held-out images; the denoiser stays as it was.

    The Fisher trace is that of the empirical Fisher information (Kirkpatrick et al., arXiv 1612.00796, with the
    observed target in place of one drawn from the model). Gradients are taken image by image: a batch's squared
    gradient mixes the trace with the mean gradient's norm, in shares that depend on the batch's size.

    The i-th image of either set meets the same timestep and the same noise (common random numbers), so that what
    differs is the images. Timesteps are the midpoints of equal intervals, in an order of the seed's.

    Args:
        backbone: With its denoiser frozen, in its pretrained state and without a method.
        groups: Any sets of its parameters, in any number.
        train: Private images; each costs a forward and a backward pass, so that some dozens have to do.
        heldout: About as many of other patients.
        seed: Draws timesteps and noises.
    """
    denoiser = backbone.denoiser
    pairs = max(len(train.latents), len(heldout.latents))
    generator = torch_generator(seed, "group probes")
    place = torch.randperm(pairs, generator=generator)
    t = ((place + 0.5) * backbone.timesteps / pairs).long().to(train.latents.device)
    noise = torch.randn((pairs, *train.latents.shape[1:]), generator=generator).to(train.latents.device)
    denoiser.requires_grad_(True)
    try:
        mean_train, fisher_train = _gradients(backbone, train, t, noise)
        mean_heldout, fisher_heldout = _gradients(backbone, heldout, t, noise)
    finally:
        denoiser.requires_grad_(False)
    weights = [parameter.detach() for parameter in denoiser.parameters()]
    sums = torch.stack(
        [
            _dots(weights, weights),
            _dots(mean_train, mean_train),
            _dots(mean_heldout, mean_heldout),
            _dots(mean_train, mean_heldout),
            fisher_train,
            fisher_heldout,
        ]
    ).cpu()
    column = {name: i for i, (name, _) in enumerate(denoiser.named_parameters())}
    sizes = torch.tensor([weight.numel() for weight in weights])

    def probe(columns: Sequence[int]) -> Probe:
        weight, of_train, of_heldout, both, first, second = sums[:, list(columns)].sum(dim=1).tolist()
        product = (of_train * of_heldout) ** 0.5
        return Probe(
            parameters=int(sizes[list(columns)].sum()),
            weight_norm=weight**0.5,
            gradient_norm_train=of_train**0.5,
            gradient_norm_heldout=of_heldout**0.5,
            fisher_trace_train=first,
            fisher_trace_heldout=second,
            gradient_cosine=both / product if product else 0.0,
        )

    return GroupProbes(
        tuple(probe([column[name] for name, _ in group.parameters_in(denoiser)]) for group in groups),
        probe(range(len(weights))),
    )


def _gradients(backbone: Backbone, data: TrainingSet, t: Tensor, noise: Tensor) -> tuple[list[Tensor], Tensor]:
    """Of each parameter the mean gradient, and the mean squared norm of one image's: float64 ``(parameters,)``."""
    parameters = list(backbone.denoiser.parameters())
    mean = [torch.zeros_like(parameter, requires_grad=False) for parameter in parameters]
    squares = torch.zeros(len(parameters), dtype=torch.float64, device=t.device)
    n = len(data.latents)
    for i in range(n):
        image = slice(i, i + 1)
        noisy, target = backbone.noised(data.latents[image], noise[image], t[image])
        loss = F.mse_loss(backbone.predict(noisy, t[image], data.states[image]), target)
        for j, gradient in enumerate(torch.autograd.grad(loss, parameters, allow_unused=True)):
            if gradient is not None:
                mean[j] += gradient / n
                squares[j] += gradient.double().square().sum() / n
    return mean, squares


def _dots(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a.double() * b.double()).sum() for a, b in zip(left, right, strict=True)])
