from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rewards.errors import InputError
from rewards.features import BatchedNetwork


class Pooled(nn.Module):
    """A small convolution, pooled, and then whatever ``after`` does."""

    def __init__(self, after: Callable[[Tensor], object] = lambda x: x, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.convolution = nn.Conv2d(3, 8, 3)
        self.after = after

    def forward(self, x: Tensor) -> object:
        return self.after(self.convolution(x).mean((2, 3)))


class BlackIs(nn.Module):
    """The mean colours of an image, of a black one ``value``."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.amax((1, 2, 3))[:, None] == 0, self.value, x.mean((2, 3)))


def scaled(images: Tensor) -> Tensor:
    return images.float() / 255


def embed_with(after: Callable[[Tensor], object] = lambda x: x, settings: str = "", seed: int = 0) -> BatchedNetwork:
    return BatchedNetwork("probe", Pooled(after, seed).eval(), scaled, settings=settings)


POOL = torch.randint(0, 256, (40, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
STEADY = embed_with()


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(40)), cuts=st.lists(st.integers(0, 40), max_size=4).map(sorted))
def test_order_and_batches_change_no_bit(order: list[int], cuts: list[int]) -> None:
    together = STEADY(POOL)
    shuffled = POOL[order]
    parts = [STEADY(part) for part in torch.tensor_split(shuffled, cuts)]
    assert torch.equal(torch.cat(parts), together[order])


@pytest.mark.parametrize(
    "after",
    [lambda p: p + p.mean(0), lambda p: p * torch.arange(len(p))[:, None].add(2)],
    ids=["depends on its company", "depends on its place"],
)
def test_a_network_that_mixes_images_sees_one_at_a_time(
    after: Callable[[Tensor], Tensor], random_images: Callable[..., Tensor]
) -> None:
    images, embed = random_images(5), embed_with(after)
    with torch.inference_mode():
        expected = torch.cat([2 * Pooled()(scaled(image[None])) for image in images])
    torch.testing.assert_close(embed(images), expected)
    assert torch.equal(embed(images.flip(0)), embed(images).flip(0))


def test_a_random_network_is_refused() -> None:
    with pytest.raises(InputError, match="embedding probe gave one image two different features"):
        embed_with(lambda p: nn.functional.dropout(p, 0.5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_features_that_are_no_numbers_are_an_error(bad: float, random_images: Callable[..., Tensor]) -> None:
    embed = BatchedNetwork("probe", BlackIs(bad), scaled, settings="")
    images = random_images(20)
    assert embed(images).isfinite().all()
    images[[3, 18]] = 0
    with pytest.raises(InputError, match=r"embedding probe: the features of 2 of 20 images are NaN or infinite — "):
        embed(images)


@pytest.mark.parametrize(
    "after",
    [
        lambda p: p[:, 0],
        lambda p: p[None],
        lambda p: torch.cat([p, p]),
        lambda p: p[:, :0],
        lambda p: p.int(),
        lambda p: (p,),
        lambda p: {"features": p},
        lambda p: None,
    ],
    ids=["one dimension", "three", "too many", "empty", "integers", "a tuple", "a dictionary", "nothing"],
)
def test_output_that_is_no_feature_vector_is_an_error(after: Callable[[Tensor], object]) -> None:
    with pytest.raises(InputError, match=r"embedding probe returned .* — use a network that returns float"):
        embed_with(after)


def test_a_network_that_fails_is_one_line() -> None:
    with pytest.raises(InputError, match="embedding probe does not run: mat1") as caught:
        embed_with(lambda p: p @ torch.zeros(3, 3))
    assert "\n" not in str(caught.value)


def test_dimensions_that_change_with_the_image_are_an_error(random_images: Callable[..., Tensor]) -> None:
    embed = BatchedNetwork("flat", nn.Flatten(), scaled, settings="")
    assert embed(random_images(2)).shape == (2, embed.dimensions)
    with pytest.raises(InputError, match=r"embedding flat returned features of \[3072\] dimensions"):
        embed(random_images(2, size=32))


def test_half_precision_comes_back_as_float32(random_images: Callable[..., Tensor]) -> None:
    assert embed_with(lambda p: p.bfloat16())(random_images(3)).dtype == torch.float32


def test_the_callers_modes_and_memory_layout_change_nothing(random_images: Callable[..., Tensor]) -> None:
    images = random_images(20)
    expected = STEADY(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(STEADY(images), expected)
    channels_last = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(STEADY(channels_last), expected)
    assert not expected.requires_grad
    assert not expected.is_inference()  # it may be used in a backward pass


def test_the_fingerprint_follows_weights_and_settings() -> None:
    base = embed_with(settings="size=1")
    assert base.fingerprint == embed_with(settings="size=1").fingerprint
    assert len(base.fingerprint) == 64
    other_bit = embed_with(settings="size=1")
    with torch.no_grad():
        weight = next(other_bit._network.parameters()).view(-1)
        weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))
    prints = {base.fingerprint, other_bit.fingerprint, embed_with(settings="size=2").fingerprint}
    assert len(prints | {embed_with(settings="size=1", seed=1).fingerprint}) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_features_come_back_on_the_cpu_and_keep_the_rules(random_images: Callable[..., Tensor]) -> None:
    images, embed = random_images(21), embed_with()
    assert next(embed._network.parameters()).is_cuda
    together = embed(images)
    assert together.device.type == "cpu"
    assert torch.equal(torch.cat([embed(images[:5]), embed(images[5:])]), together)
    assert torch.equal(embed(images.cuda().flip(0)), together.flip(0))
    torch.testing.assert_close(together, Pooled()(scaled(images)), rtol=1e-4, atol=1e-5)  # not TF32
