from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.backbones.pretrain.stream import PublicImages, Stream

SETTINGS: list[dict[str, Any]] = [{}, {"colour": 0.7, "zoom": 1.4}, {"photographs": 1.0}, {"photographs": 0.0}]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_batch_is_a_function_of_seed_and_step(public: PublicImages, settings: dict[str, Any]) -> None:
    stream = Stream(public, seed=1, **settings)
    images, captions = stream.batch(7, 5)
    stream.batch(8, 5)
    np.random.seed(0)  # noqa: NPY002 — a global state that must not matter
    again, captions_again = Stream(public, seed=1, **settings).batch(7, 5)
    assert torch.equal(again, images)
    assert captions_again == captions
    assert not torch.equal(stream.batch(8, 5)[0], images)
    assert not torch.equal(Stream(public, seed=2, **settings).batch(7, 5)[0], images)


@pytest.mark.parametrize("settings", SETTINGS)
def test_batches_are_images(public: PublicImages, settings: dict[str, Any]) -> None:
    images, captions = Stream(public, **settings).batch(0, 10)
    assert images.shape == (10, 3, 64, 64)
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    assert -1 <= images.min() < -0.5
    assert 0.5 < images.max() <= 1
    assert images.std((1, 2, 3)).min() > 0.05
    assert len(captions) == 10


def test_a_batch_holds_the_share_of_photographs_and_both_kinds_of_phantom(public: PublicImages) -> None:
    images, captions = Stream(public, photographs=0.4).batch(3, 10)
    photographs = [(image, caption) for image, caption in zip(images, captions, strict=True) if "x-ray" in caption]
    assert len(photographs) == 4
    assert sum("radiograph phantom" in caption for caption in captions) == 3
    assert sum("dermoscopy phantom" in caption for caption in captions) == 3
    for image, caption in photographs:
        original = public.train[public.train_captions.index(caption)]
        torch.testing.assert_close(image, torch.from_numpy(original.transpose(2, 0, 1)) / 127.5 - 1)


def test_no_image_of_the_private_site_enters(public: PublicImages) -> None:
    captions = [caption for step in range(5) for caption in Stream(public).batch(step, 10)[1]]
    assert not any("pediatric" in caption or "polarized" in caption for caption in captions)


def test_zoomed_photographs_are_crops(public: PublicImages) -> None:
    flat = dataclasses.replace(public, train=np.full_like(public.train, 128))
    images, _ = Stream(flat, photographs=1.0, zoom=1.4).batch(0, 3)
    torch.testing.assert_close(images, torch.full((3, 3, 64, 64), 1 / 255))
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None] * 4, public.train.shape)
    images, _ = Stream(dataclasses.replace(public, train=ramp), photographs=1.0, zoom=1.4).batch(0, 8)
    spans = (images[:, 0, 32, 60] - images[:, 0, 32, 4]) / (images[:, 0, 32, 1:] - images[:, 0, 32, :-1]).median() / 56
    slopes = (images[:, 0, 32, 60] - images[:, 0, 32, 4]) / 56 / (4 / 127.5)
    torch.testing.assert_close(spans, torch.ones(8), rtol=0.2, atol=0)
    assert 1 / 1.45 < slopes.min() < slopes.max() <= 1.01, "magnified by 1 to 1.4"
    assert slopes.max() - slopes.min() > 0.05


def test_colours_change_only_where_asked(public: PublicImages) -> None:
    gray, _ = Stream(public, photographs=1.0).batch(0, 8)
    coloured, _ = Stream(public, photographs=1.0, colour=1.0).batch(0, 8)
    assert (gray.amax(1) - gray.amin(1)).max() == 0
    assert ((coloured.amax(1) - coloured.amin(1)).amax((1, 2)) > 0.02).all()


def test_public_images_are_read_from_npz(tmp_path: Path) -> None:
    images = np.arange(3 * 64 * 64, dtype=np.uint32).astype(np.uint8).reshape(3, 64, 64)
    np.savez(tmp_path / "gray.npz", images=images, text=["a", "b", "c"], split=["train", "test", "train"])
    found = PublicImages.load(tmp_path / "gray.npz")
    assert found.train_captions == ("a", "c")
    assert found.train.shape == (2, 64, 64, 3)
    for channel in range(3):
        assert np.array_equal(found.train[..., channel], images[[0, 2]])
        assert np.array_equal(found.heldout[..., channel], images[[1]])
    colour = np.stack([images, images[::-1], images], axis=-1)
    np.savez(tmp_path / "colour.npz", images=colour, text=["a", "b", "c"], split=["train", "test", "train"])
    assert np.array_equal(PublicImages.load(tmp_path / "colour.npz").heldout, colour[[1]])
