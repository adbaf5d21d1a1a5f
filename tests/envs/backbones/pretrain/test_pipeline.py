from __future__ import annotations

from pathlib import Path

import pytest
import torch

from envs.backbones.latent import load_latent_backbone
from envs.backbones.pretrain.autoencoder import build_autoencoder
from envs.backbones.pretrain.denoiser import Denoiser, build_denoiser, tokenize
from envs.backbones.pretrain.pipeline import save_pipeline, scale_latents
from envs.backbones.pretrain.stream import PublicImages, Stream
from envs.backbones.pretrain.text import build_text_encoder, build_tokenizer, phantom_captions


def test_scaled_latents_have_unit_variance(public: PublicImages) -> None:
    autoencoder, stream = build_autoencoder(), Stream(public)
    scale_latents(autoencoder, stream, batches=1)
    with torch.no_grad():
        latents = autoencoder.encode(stream.batch(0, 50)[0]).latent_dist.mode()
    assert float((latents * autoencoder.config.scaling_factor).std()) == pytest.approx(1, rel=1e-4)


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    autoencoder, tokenizer = build_autoencoder(), build_tokenizer(phantom_captions())
    autoencoder.register_to_config(scaling_factor=2.5)
    denoiser = Denoiser(build_denoiser(), build_text_encoder(tokenizer))
    save_pipeline(autoencoder, tokenizer, denoiser, tmp_path)
    loaded = load_latent_backbone(tmp_path, name="embedded", device=torch.device("cpu"))
    assert loaded.scaling_factor == 2.5
    assert loaded.image_size == 64
    pairs = [
        (autoencoder, loaded.autoencoder),
        (denoiser.unet, loaded.denoiser),
        (denoiser.text_encoder, loaded.text_encoder),
    ]
    for saved, found in pairs:
        state = found.state_dict()
        assert saved.state_dict().keys() == state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in saved.state_dict().items())
    text = "Chest radiograph phantom, 漢字"
    expected = tokenize(tokenizer, [text])
    assert torch.equal(tokenize(loaded.tokenizer, [text]), expected)
    states = denoiser.text_encoder.eval()(expected).last_hidden_state
    torch.testing.assert_close(loaded.encode_captions([text]), states)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 20e6
