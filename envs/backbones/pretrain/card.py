"""Measures the embedded backbone on images that it never saw, and writes its card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from envs.backbones.latent import LatentBackbone
from envs.backbones.pretrain.stream import PublicImages
from envs.datasets.phantom import FINDINGS, render
from envs.generate import generate
from rewards.features import embedding
from rewards.neighbors import nearest_neighbors
from rewards.quality.kid import kid

_SAMPLES = 200
_STEPS = 20


@dataclass(frozen=True)
class Fidelity:
    """How well the autoencoder keeps a set of images that it never saw.

    Attributes:
        images: How many were encoded and decoded.
        psnr: Mean peak signal-to-noise ratio in dB.
        psnr_worst: Its 1 % quantile.
        reidentified: Share whose decoded image is nearest, in pixels, to its own original among all originals.
    """

    images: int
    psnr: float
    psnr_worst: float
    reidentified: float


def fidelity(backbone: LatentBackbone, images: NDArray[np.uint8]) -> Fidelity:
    """Encodes and decodes uint8 ``(n, h, w, 3)`` and looks for the originals."""
    decoded = backbone.decode_latents(backbone.encode_images(images))
    error = (decoded.astype(np.float64) - images.astype(np.float64)) / 255
    psnr = -10 * np.log10(np.maximum((error**2).mean((1, 2, 3)), 1e-12))
    pixels = embedding("pixels")
    found = nearest_neighbors(pixels(_tensor(decoded)), pixels(_tensor(images)))
    same = found.indices[:, 0].numpy() == np.arange(len(images))
    return Fidelity(len(images), float(psnr.mean()), float(np.quantile(psnr, 0.01)), float(same.mean()))


def sample(backbone: LatentBackbone, captions: list[str], seed: int = 0) -> NDArray[np.uint8]:
    """One image a caption, uint8 ``(n, h, w, 3)``."""
    states, empty = backbone.encode_captions(captions), backbone.encode_captions([""])
    return generate(backbone, states, empty, steps=_STEPS, guidance_scale=1.0, seed=seed)


def measure(backbone: LatentBackbone, public: PublicImages, unseen: Mapping[str, NDArray[np.uint8]]) -> dict[str, Any]:
    """Everything that the card states.

    KID (lite0 features) is of samples with captions of public X-rays against X-rays of held-out patients, and beside it
    that of training X-rays against them: what a perfect generator would reach.

    Args:
        backbone: The finished pipeline.
        public: The public X-rays; their held-out patients were not trained on.
        unseen: Further sets for the autoencoder, by name.
    """
    lite0 = embedding("efficientnet_lite0")
    heldout = public.heldout[:_SAMPLES]
    real = lite0(_tensor(heldout))
    captions = list(public.train_captions[:: max(1, len(public.train_captions) // _SAMPLES)][:_SAMPLES])
    generated = sample(backbone, captions)
    rows = np.linspace(0, len(public.train) - 1, len(heldout)).astype(int)
    return {
        "autoencoder": {name: asdict(fidelity(backbone, images)) for name, images in unseen.items()},
        "kid": {
            "samples": kid(lite0(_tensor(generated)), real).value,
            "training X-rays": kid(lite0(_tensor(public.train[rows])), real).value,
            "images": len(generated),
            "sampling_steps": _STEPS,
        },
        "parameters": {
            "autoencoder": _parameters(backbone.autoencoder),
            "text_encoder": _parameters(backbone.text_encoder),
            "denoiser": _parameters(backbone.denoiser),
        },
    }


def draw_samples(backbone: LatentBackbone, public: PublicImages, path: Path) -> None:
    """A grid of samples, four rows: adult X-rays, radiograph phantoms, lesion phantoms, no caption."""
    columns = 12
    rows = [list(public.train_captions[:columns])]
    for kind in FINDINGS:
        rows.append(list(render(kind, range(columns), seed=1, site="public", size=16).captions))
    rows.append([""] * columns)
    grid = [np.concatenate(list(sample(backbone, captions, seed=i)), axis=1) for i, captions in enumerate(rows)]
    Image.fromarray(np.concatenate(grid)).resize((columns * 128, len(grid) * 128), Image.Resampling.NEAREST).save(path)


def write_card(folder: Path, measured: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    """Writes ``card.json`` (everything) and ``README.md`` (for people) into the pipeline folder."""
    (folder / "card.json").write_text(
        json.dumps({"training": dict(training), "measured": dict(measured)}, indent=1, allow_nan=False) + "\n"
    )
    kid_values, parameters = measured["kid"], measured["parameters"]
    rows = "\n".join(
        f"| {name} | {f['images']} | {f['psnr']:.1f} | {f['psnr_worst']:.1f} | {100 * f['reidentified']:.1f} % |"
        for name, f in measured["autoencoder"].items()
    )
    parts = "\n".join(
        f"| {name} | {training[key]['steps']} | {training[key]['batch_size']} | {training[key]['seconds']:.0f} |"
        for key, name in (("autoencoder", "autoencoder"), ("denoiser", "denoiser and text encoder"))
    )
    (folder / "README.md").write_text(
        f"""# The embedded backbone

A text-conditional latent diffusion pipeline for 64x64 RGB images in the Stable Diffusion folder layout, small enough
to fine-tune in seconds on a laptop: autoencoder {parameters["autoencoder"]:,} parameters, text encoder
{parameters["text_encoder"]:,}, denoiser {parameters["denoiser"]:,}. It is a test bed for memorization, not a model of
medicine: **nothing that it generates may be used to learn anything about patients or disease.**

Licence: Apache-2.0, as the repository. Written by `python -m agents.pretrain`; every figure below was measured by it
(`card.json` has them all).

## Data

Public images only: {training["photographs"]} adult chest X-rays of the NIH ChestX-ray14 set (Wang et al., CVPR 2017; no
restrictions on use; provided by the NIH Clinical Center, https://nihcc.app.box.com/v/ChestXray-NIHCC), training
patients only, and an endless stream of procedural phantoms (site `public`). No image of any private set.

## Training

| part | steps | batch | seconds on one core |
| --- | --- | --- | --- |
{parts}

## The autoencoder on images that it never saw

Encoded and decoded; re-identified = the nearest original, in pixels and among all originals, is the image's own.

| set | images | PSNR, dB | its 1 % quantile | re-identified |
| --- | --- | --- | --- | --- |
{rows}

## Samples

KID (EfficientNet-lite0 features) of {kid_values["images"]} samples, {kid_values["sampling_steps"]} steps, no guidance,
against held-out patients of the public X-rays: {kid_values["samples"]:.3f}; of training X-rays against the same:
{kid_values["training X-rays"]:.3f}. `samples.png` shows some: adult X-rays, radiograph phantoms, lesion phantoms,
no caption.
""",
        encoding="utf-8",
    )


def _tensor(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
