"""``python -m agents.pretrain``: makes the embedded backbone from public images. Resumable; takes hours on one core."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig

from agents.entry import entry_point
from agents.settings import read_settings
from envs.backbones.latent import load_latent_backbone
from envs.backbones.pretrain.autoencoder import AutoencoderSettings, train_autoencoder
from envs.backbones.pretrain.card import draw_samples, measure, write_card
from envs.backbones.pretrain.denoiser import DenoiserSettings, train_denoiser
from envs.backbones.pretrain.pipeline import save_pipeline, scale_latents
from envs.backbones.pretrain.stream import PublicImages, Stream
from envs.backbones.pretrain.text import build_tokenizer, phantom_captions
from rewards.errors import InputError


@dataclass(frozen=True)
class PretrainSettings:
    """Everything ``python -m agents.pretrain`` is told.

    Attributes:
        public: npz file of public images with the columns images, text and split.
        unseen: Further npz files, by name, on which the card measures the autoencoder; never trained on.
        out: Pipeline folder to write.
        work: Folder of the checkpoints.
        threads: torch threads.
        autoencoder: See `AutoencoderSettings`.
        denoiser: See `DenoiserSettings`.
    """

    public: str
    unseen: dict[str, str]
    out: str
    work: str
    threads: int
    autoencoder: AutoencoderSettings
    denoiser: DenoiserSettings


@entry_point("pretrain")
def main(config: DictConfig) -> None:
    """Trains autoencoder and denoiser, or goes on with their checkpoints, and writes pipeline, card and samples."""
    settings = read_settings(config, PretrainSettings)
    torch.set_num_threads(settings.threads)
    for file in (settings.public, *settings.unseen.values()):
        if not Path(file).is_file():
            raise InputError(f"{file} is no file", "point public= and unseen.<name>= at npz files of images")
    public, work, out = PublicImages.load(Path(settings.public)), Path(settings.work), Path(settings.out)

    varied = Stream(public, seed=settings.autoencoder.seed, photographs=0.4, colour=0.4, zoom=1.4)
    autoencoder = train_autoencoder(varied, settings.autoencoder, work)
    plain = Stream(public, seed=settings.denoiser.seed, photographs=0.5, zoom=1.1)
    scale_latents(autoencoder, plain)

    tokenizer = build_tokenizer([*public.train_captions, *phantom_captions()])
    denoiser = train_denoiser(plain, autoencoder, tokenizer, settings.denoiser, work)
    save_pipeline(autoencoder, tokenizer, denoiser, out)

    backbone = load_latent_backbone(out, name="embedded", device=torch.device("cpu"))
    unseen = {"adult X-rays, held-out patients": public.heldout}
    unseen |= {name: _images(Path(file)) for name, file in settings.unseen.items()}
    write_card(out, measure(backbone, public, unseen), _training(settings, public, work))
    draw_samples(backbone, public, out / "samples.png")
    print(f"wrote {out}")


def _images(path: Path) -> NDArray[np.uint8]:
    with np.load(path, allow_pickle=False) as data:
        images: NDArray[np.uint8] = data["images"]
    return images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=-1)


def _training(settings: PretrainSettings, public: PublicImages, work: Path) -> dict[str, Any]:
    def seconds(name: str) -> float:
        return float(torch.load(work / name, map_location="cpu", weights_only=True)["seconds"])

    return {
        "photographs": len(public.train),
        "autoencoder": asdict(settings.autoencoder) | {"seconds": seconds("autoencoder.pt")},
        "denoiser": asdict(settings.denoiser) | {"seconds": seconds("denoiser.pt")},
    }


if __name__ == "__main__":
    main()
