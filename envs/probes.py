"""What a model shows of itself when it is asked about named images and captions, as `rewards.evidence` takes it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray
from torch import Tensor, nn

from envs.backbones.base import Backbone
from envs.backbones.latent import LatentBackbone
from envs.generate import both_predictions, denoise, starting_noise
from rewards.errors import InputError
from rewards.inversion import (
    InversionResult,
    InversionSettings,
    Progress,
    Similarity,
    calibrated_similarity,
    invert,
)
from rewards.memorization.noise_magnitude import noise_magnitude

_LEAST_SIGNAL = 0.01
"""Below it an error of the predicted noise counts more than tenfold in the image that follows from it."""
_CHUNK = 32


class BackboneDenoiser:
    """A `Backbone` as inversion sees it (`rewards.inversion.Denoiser`).

    Images are latents, conditions are text states, None of an unconditional backbone. Whatever the backbone's own
    sampler, this one is DDIM without noise (Song et al., arXiv:2010.02502) on the backbone's noise schedule, so that a
    sample follows from its noise.

    Args:
        backbone: With the denoiser in the state to ask; see `frozen`.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._scheduler = DDIMScheduler.from_config(backbone.scheduler.config, clip_sample=False, thresholding=False)
        self._kind = str(self._scheduler.config.prediction_type)
        self._signal: Tensor = self._scheduler.alphas_cumprod.to(backbone.device)

    @property
    def signal(self) -> Tensor:
        """See `Denoiser`."""
        return self._signal[self._signal >= _LEAST_SIGNAL] if self._kind == "epsilon" else self._signal

    def clean(self, noisy: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """See `Denoiser`."""
        output = self.backbone.predict(noisy, t, self._states(condition, len(noisy)))
        signal = self._signal[t].view(-1, 1, 1, 1)
        if self._kind == "epsilon":
            return (noisy - (1 - signal).sqrt() * output) / signal.sqrt()
        if self._kind == "v_prediction":
            return signal.sqrt() * noisy - (1 - signal).sqrt() * output
        return output

    @torch.no_grad()
    def sample(self, noise: Tensor, condition: Tensor | None, steps: int) -> Tensor:
        """See `Denoiser`."""
        states = self._states(condition, len(noise))

        def predict(scaled: Tensor, t: Tensor, rows: slice) -> Tensor:
            return self.backbone.predict(scaled, t, states[rows])

        return denoise(self._scheduler, noise, predict, steps=steps, generators=())

    def decode(self, clean: Tensor) -> Tensor:
        """See `Denoiser`."""
        return _as_tensor(self.backbone.decode_latents(clean))

    def _states(self, condition: Tensor | None, n: int) -> Tensor:
        return self.backbone.encode_captions([""] * n) if condition is None else condition


class LatentDenoiser(BackboneDenoiser):
    """A `LatentBackbone` as inversion sees it: it takes soft prompts too (`rewards.inversion.Prompted`).

    Args:
        backbone: With the denoiser in the state to ask; see `frozen`.
    """

    backbone: LatentBackbone

    def __init__(self, backbone: LatentBackbone) -> None:
        super().__init__(backbone)

    @property
    def prompt_shape(self) -> tuple[int, int]:
        """See `Prompted`: all tokens between the first and the last."""
        tokenizer = self.backbone.tokenizer
        return int(tokenizer.model_max_length) - 2, len(self.backbone.text_encoder.get_input_embeddings().weight)

    def encode_prompt(self, weights: Tensor) -> Tensor:
        """See `Prompted`: mixtures of word embeddings stand where a caption's would."""
        tokenizer, encoder = self.backbone.tokenizer, self.backbone.text_encoder
        words = encoder.get_input_embeddings()
        mixed = weights @ words.weight

        def replaced(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return torch.cat([output[:, :1], mixed[None], output[:, -1:]], 1)

        ids = [tokenizer.bos_token_id, *[tokenizer.eos_token_id] * (len(weights) + 1)]
        # transformers' text encoder takes numbers of words only; its table of words is the one place to get between.
        with words.register_forward_hook(replaced):
            states: Tensor = encoder(torch.tensor([ids], device=weights.device)).last_hidden_state
        return states


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients for weights within, and each module and parameter as it was afterwards."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    learning = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    for module in modules:
        module.eval().requires_grad_(False)
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for parameter in learning:
            parameter.requires_grad_(True)


def reproduction_similarity(
    backbone: Backbone, train: NDArray[np.uint8], heldout: NDArray[np.uint8], rate: float = 0.01
) -> Similarity:
    """`calibrated_similarity` of images as the backbone's autoencoder returns them.

    Args:
        backbone: Its autoencoder.
        train: uint8 RGB ``(n, height, width, 3)``.
        heldout: uint8 RGB ``(m, height, width, 3)``, of other patients.
        rate: Of held-out images that would count as a training image, in (0, 1).
    """
    real, others = (_as_tensor(backbone.decode_latents(backbone.encode_images(images))) for images in (train, heldout))
    return calibrated_similarity(real, others, rate)


def invert_images(
    backbone: Backbone,
    images: NDArray[np.uint8],
    captions: Sequence[str],
    similarity: Similarity,
    settings: InversionSettings,
    progress: Progress | None = None,
) -> list[InversionResult]:
    """`rewards.inversion.invert` of each image; the backbone is as before afterwards, also after an error.

    Args:
        backbone: With the denoiser in the state to ask.
        images: uint8 RGB ``(n, height, width, 3)``.
        captions: One an image; empty ones ask the model without a caption, as an unconditional one always is.
        similarity: When a sample counts as the image, see `reproduction_similarity`.
        settings: Of the search.
        progress: Called after every group of images.

    Raises:
        InputError: If there is not one caption an image, or the sampler has more steps than the backbone timesteps.
    """
    if len(images) != len(captions):
        raise InputError(f"{len(images)} images and {len(captions)} captions", "give one caption an image")
    _check_steps("inversion.sampling_steps", settings.sampling_steps, backbone)
    if not len(images):
        return []
    with frozen(*backbone.modules):
        return invert(
            LatentDenoiser(backbone) if isinstance(backbone, LatentBackbone) else BackboneDenoiser(backbone),
            backbone.encode_images(np.ascontiguousarray(images)),
            similarity,
            settings,
            backbone.encode_captions(captions) if backbone.conditional else None,
            progress,
        )


@torch.inference_mode()
def noise_magnitudes(
    backbone: Backbone,
    captions: Sequence[str],
    *,
    steps: int,
    guidance_scale: float,
    seed: int,
    progress: Progress | None = None,
) -> Tensor:
    """`rewards.memorization.noise_magnitude` of one generation from each caption: float32 ``(n,)`` on the CPU.

    Generation i starts from the noise of image i of `envs.generate.sample_latents`, whatever the caption.

    Args:
        backbone: With the denoiser in the state to ask.
        captions: What is generated from.
        steps: Of the backbone's sampler.
        guidance_scale: Classifier-free guidance of the generations; 1 is none.
        seed: Names the noise.
        progress: Called after every group of generations.

    Raises:
        InputError: If the sampler has more steps than the backbone timesteps.
    """
    _check_steps("noise_magnitude.steps", steps, backbone)
    if not captions:
        return torch.zeros(0)
    states, empty = backbone.encode_captions(captions), backbone.encode_captions([""])
    noise, generators = starting_noise(backbone, len(captions), seed)
    factors = _noise_per_output(backbone)
    found: list[Tensor] = []
    with frozen(backbone.denoiser):
        for start in range(0, len(captions), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            condition, norms = states[chunk], defaultdict[int, list[Tensor]](list)

            def predict(
                scaled: Tensor,
                t: Tensor,
                rows: slice,
                condition: Tensor = condition,
                norms: dict[int, list[Tensor]] = norms,
            ) -> Tensor:
                unconditional, conditional = both_predictions(backbone, scaled, t, condition[rows], empty)
                pull = conditional - unconditional
                norms[rows.start].append(factors[int(t)] * pull.flatten(1).norm(dim=1))
                return unconditional + guidance_scale * pull

            denoise(backbone.scheduler, noise[chunk], predict, steps=steps, generators=generators[chunk])
            each_step = torch.cat([torch.stack(of_rows) for of_rows in norms.values()], 1)
            found.append(noise_magnitude(each_step, noise[0].numel()).cpu())
            if progress is not None:
                progress(min(start + _CHUNK, len(captions)), len(captions))
    return torch.cat(found)


def _noise_per_output(backbone: Backbone) -> Tensor:
    """How much of the predicted noise changes with the denoiser's output, by timestep ``(T,)``.

    With x_t given, noise = sqrt(a) v + sqrt(1 - a) x_t = (x_t - sqrt(a) x_0) / sqrt(1 - a), where a is the signal.
    """
    signal: Tensor = BackboneDenoiser(backbone)._signal
    kind = backbone.scheduler.config.prediction_type
    if kind == "epsilon":
        return torch.ones_like(signal)
    return signal.sqrt() if kind == "v_prediction" else (signal / (1 - signal)).sqrt()


def _check_steps(name: str, steps: int, backbone: Backbone) -> None:
    if not 1 <= steps <= backbone.timesteps:
        raise InputError(f"{name}={steps}", f"set it to 1 to {backbone.timesteps}, the backbone's timesteps")


def _as_tensor(images: NDArray[np.uint8]) -> Tensor:
    """``(n, h, w, 3)`` to ``(n, 3, h, w)``, still uint8."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
