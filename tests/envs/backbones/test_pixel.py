from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from numpy.typing import NDArray
from PIL import Image

from envs.backbones.base import check_guidance
from envs.backbones.pixel import PixelBackbone, load_pixel_backbone
from envs.batches import TrainingSet
from envs.datasets import SplitDataset, prepare_dataset
from envs.evaluators.finetune import FineTuneEvaluator
from envs.finetune import finetune
from envs.generate import generate
from envs.groups import find_groups
from envs.losses import denoising_losses
from envs.methods import find_method
from envs.seeding import torch_generator
from envs.task import InnerBudget, Schedule, SelectionTask
from rewards.errors import InputError

CPU = torch.device("cpu")
BUDGET = InnerBudget(steps=2, batch_size=4, learning_rate=1e-2, images=5, sampling_steps=3, loss_draws=2, inversions=2)


def random_images(n: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), dtype=np.uint8)


def prepared(backbone: PixelBackbone, n: int = 6) -> TrainingSet:
    states = backbone.encode_captions([f"image {i}" for i in range(n)])
    return TrainingSet(backbone.encode_images(random_images(n)), states, backbone.encode_captions([""]))


def test_sizes(pixels: PixelBackbone) -> None:
    assert pixels.image_size == 16
    assert pixels.latent_shape == (3, 16, 16)
    assert pixels.timesteps == 1000
    assert not pixels.conditional
    assert pixels.encode_captions(["a", "b"]).shape == (2, 0, 0)


def test_images_come_back_as_they_were(pixels: PixelBackbone) -> None:
    images = random_images(3)
    latents = pixels.encode_images(images)
    assert latents.dtype == torch.float32
    assert latents.min() == -1
    assert latents.max() == 1
    assert np.array_equal(pixels.decode_latents(latents), images)
    beyond = pixels.decode_latents(torch.tensor([-3.0, 3.0]).view(2, 1, 1, 1).expand(2, 3, 16, 16))
    assert (beyond[0] == 0).all()
    assert (beyond[1] == 255).all()


def test_a_grey_denoiser_sees_luminance_and_gives_grey_images(grey_folder: Path) -> None:
    backbone = load_pixel_backbone(grey_folder, name="grey", device=CPU)
    images = random_images(3)
    latents = backbone.encode_images(images)
    assert latents.shape == (3, 1, 16, 16)
    luminance = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in images])
    decoded = backbone.decode_latents(latents)
    assert decoded.shape == images.shape
    assert all(np.array_equal(decoded[..., 0], decoded[..., channel]) for channel in (1, 2))
    assert np.abs(decoded[..., 0].astype(int) - luminance).max() <= 1
    grey = np.repeat(luminance[..., None], 3, axis=3)
    assert np.array_equal(backbone.decode_latents(backbone.encode_images(grey)), grey)


def test_samples_are_those_of_the_pipeline_s_scheduler(pixels: PixelBackbone, ddpm_folder: Path) -> None:
    """The pipeline's own call is the reference. It draws every image's noise from one generator: one image is asked."""
    states = pixels.encode_captions([""])
    got = generate(pixels, states, states, steps=4, guidance_scale=1.0, seed=3)
    pipeline = DDPMPipeline.from_pretrained(ddpm_folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch_generator(3, "generate", 0)
    expected = pipeline(generator=generator, num_inference_steps=4, output_type="np").images
    assert np.abs(got / 255 - expected).max() <= 1 / 255


def test_every_single_group_trains_and_nothing_else(pixels: PixelBackbone) -> None:
    """A crash of torch's GroupNorm would end the whole process here, see `guard_group_norms`."""
    groups = find_groups(pixels.denoiser, "blocks")
    attachment = find_method("full")(pixels.denoiser, groups)
    data = prepared(pixels)
    start = {name: p.clone() for name, p in pixels.denoiser.named_parameters()}
    for i, group in enumerate(groups):
        mask = Schedule.constant(j == i for j in range(len(groups)))
        assert finetune(pixels, attachment, mask, data, BUDGET, seed=0).steps == BUDGET.steps
        moved = {name for name, p in pixels.denoiser.named_parameters() if not torch.equal(p, start[name])}
        assert moved == {name for name, _ in group.parameters_in(pixels.denoiser)}, group.name
        pixels.denoiser.load_state_dict(start)


def test_losses_do_not_depend_on_captions(pixels: PixelBackbone) -> None:
    latents = pixels.encode_images(random_images(3))
    one, other = (
        denoising_losses(pixels, latents, pixels.encode_captions([text] * 3), draws=2, seed=0) for text in ("a", "b")
    )
    assert torch.equal(one, other)


def test_guidance_is_refused(pixels: PixelBackbone) -> None:
    check_guidance(pixels, 1.0, "inner.guidance_scale")
    with pytest.raises(InputError, match=r"inner.guidance_scale=4.0 .* set inner.guidance_scale=1"):
        check_guidance(pixels, 4.0, "inner.guidance_scale")


@pytest.fixture(scope="module")
def dataset() -> SplitDataset:
    options = {"identities": 24}
    return prepare_dataset(
        "phantom", root=None, size=16, train=5, heldout=6, test=6, seed=0, radius=0.02, options=options
    )


def test_an_evaluation_measures_what_needs_no_captions(pixels: PixelBackbone, dataset: SplitDataset) -> None:
    groups = tuple(group.name for group in find_groups(pixels.denoiser, "blocks"))
    task = SelectionTask(
        env="phantom",
        split_sha256=dataset.split_sha256,
        backbone="ddpm",
        backbone_sha256=pixels.sha256,
        method="full",
        scheme="blocks",
        groups=groups,
        inner=BUDGET,
        metrics=("membership", "average_minimum_distance", "noise_magnitude", "extraction", "inversion_success"),
        seed=3,
    )
    evaluator = FineTuneEvaluator(task, dataset, pixels)
    first = evaluator.evaluate(Schedule.constant([True] * len(groups)))
    measured = {name for name, measurement in first.metrics.items() if measurement.value is not None}
    assert measured == {"membership", "average_minimum_distance", "inversion_success"}
    assert first.metrics["noise_magnitude"].note == "there are no noise magnitudes"
    assert first.metrics["extraction"].note == "there are no prompts"
    assert evaluator.evaluate(Schedule.constant([True] * len(groups))).same_numbers(first)
