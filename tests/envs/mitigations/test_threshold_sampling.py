from __future__ import annotations

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor

from envs.generate import Steering, generate, starting_noise
from envs.mitigations import find_mitigations
from envs.mitigations.caption_pull import caption_pulls, heldout_rows, usual_limit
from envs.mitigations.threshold_sampling import Descent, first_step
from envs.seeding import torch_generator
from rewards.errors import InputError
from tests.envs.mitigations.conftest import Ward
from tests.envs.mitigations.test_caption_noise import situation

# diffusers' sigma schedulers hand tensors to numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

STEPS = 3


def pulls(ward: Ward, states: Tensor, noise: Tensor) -> Tensor:
    noisy, t = first_step(ward.backbone, noise, STEPS)
    return caption_pulls(ward.backbone, noisy, t, states, situation(ward).data.empty_state)


def descended(
    ward: Ward, target: float, states: Tensor, noise: Tensor, iterations: int = 10, at_once: int = 4
) -> Tensor:
    descent = Descent(target, 0.05, iterations, STEPS, at_once)
    return descent.states(ward.backbone, states, situation(ward).data.empty_state, noise)


def test_captions_above_the_target_pull_less_and_the_others_are_not_touched(ward: Ward) -> None:
    states = situation(ward).data.states
    noise, _ = starting_noise(ward.backbone, len(states), 0)
    before = pulls(ward, states, noise)
    target = float(before.sort().values[2:4].mean())
    found = descended(ward, target, states, noise)
    after, above = pulls(ward, found, noise), before > target
    assert 0 < above.sum() < len(states)
    assert (after[above] < before[above]).all()
    assert torch.equal(found[~above], states[~above])
    assert (after <= target * (1 + 1e-4)).all()


def test_a_target_out_of_reach_takes_the_state_that_pulls_least(ward: Ward) -> None:
    states = situation(ward).data.states[:2]
    noise, _ = starting_noise(ward.backbone, 2, 0)
    reached = [pulls(ward, states, noise)]
    reached += [pulls(ward, descended(ward, 0.0, states, noise, iterations=n), noise) for n in (1, 4)]
    assert (reached[1] < reached[0]).all()
    assert (reached[2] <= reached[1]).all()


def test_what_becomes_of_an_image_does_not_depend_on_those_beside_it(ward: Ward) -> None:
    states = situation(ward).data.states
    noise, _ = starting_noise(ward.backbone, len(states), 0)
    together = descended(ward, 0.0, states, noise, iterations=3)
    for rows in (slice(0, 1), slice(2, 5)):
        apart = descended(ward, 0.0, states[rows], noise[rows], iterations=3, at_once=3)
        torch.testing.assert_close(apart, together[rows], rtol=1e-3, atol=1e-3)


def test_it_works_in_inference_mode_and_leaves_no_gradients(ward: Ward) -> None:
    states = situation(ward).data.states[:2]
    noise, _ = starting_noise(ward.backbone, 2, 0)
    with torch.inference_mode():
        inside = descended(ward, 0.0, states.clone(), noise.clone(), iterations=2)
    torch.testing.assert_close(inside, descended(ward, 0.0, states, noise, iterations=2))
    assert not inside.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in ward.backbone.denoiser.parameters())


def test_images_that_start_from_captions_at_the_target_are_those_of_plain_sampling(ward: Ward) -> None:
    case = situation(ward)

    def images(**settings: object) -> Tensor:
        steerings = ward.regimen({"threshold_sampling": settings}).treatment.steerings if settings else ()
        data = case.data
        found = generate(
            ward.backbone,
            data.states,
            data.empty_state,
            steps=STEPS,
            guidance_scale=1.0,
            seed=0,
            steerings=steerings,
        )
        return torch.from_numpy(found)

    plain = images()
    assert torch.equal(images(target=1e6), plain)
    assert torch.equal(images(target=0.0, iterations=0), plain)
    assert not torch.equal(images(target=0.0), plain)


def test_the_target_is_calibrated_on_heldout_captions_in_the_model_that_is_sampled_from(ward: Ward) -> None:
    def touched(descent: Steering) -> list[bool]:
        found = descent.states(ward.backbone, states, data.empty_state, noise)
        return [not torch.equal(one, other) for one, other in zip(found, states, strict=True)]

    def expected(seed: int) -> list[bool]:
        generator = torch_generator(seed, "threshold_sampling")
        rows = heldout_rows("threshold_sampling", case, 8, generator)
        noisy, t = first_step(ward.backbone, torch.randn((8, *ward.backbone.latent_shape), generator=generator), STEPS)
        usual = caption_pulls(ward.backbone, noisy, t, case.heldout_data.states[rows], data.empty_state)
        return (pulls(ward, states, noise) > usual_limit(usual, 0.4)).tolist()

    case = situation(ward)
    data = case.data
    states = data.states
    noise, _ = starting_noise(ward.backbone, len(states), 0)
    settings = {"threshold_sampling": {"draws": 8, "quantile": 0.4}}
    descents = [steering for seed in (0, 1) for steering in ward.regimen(settings, seed).treatment.steerings]
    assert 0 < sum(expected(0)) < len(states)
    before = pulls(ward, states, noise).min()
    assert [touched(descent) for descent in descents] == [expected(0), expected(1)]
    with torch.no_grad():
        for parameter in ward.backbone.denoiser.conv_out.parameters():
            parameter.mul_(100)
    # Every caption now pulls harder than any did when the treatment was prepared.
    assert pulls(ward, states, noise).min() > 10 * before
    assert [touched(descent) for descent in descents] == [expected(0), expected(1)]
    assert 0 < sum(expected(0)) < len(states)


def test_the_first_step_is_where_a_sampler_starts(ward: Ward) -> None:
    noise, _ = starting_noise(ward.backbone, 2, 0)
    noisy, t = first_step(ward.backbone, noise, STEPS)
    assert torch.equal(noisy, noise), "of the backbone's own sampler"
    assert t.tolist() == [999, 999]
    ward.backbone.scheduler = EulerDiscreteScheduler(timestep_spacing="trailing")
    noisy, t = first_step(ward.backbone, noise, STEPS)
    sigma = 1 / ward.backbone.scheduler.alphas_cumprod[-1] - 1
    torch.testing.assert_close(noisy, noise * (sigma / (sigma + 1)).sqrt(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "settings", [{"quantile": 0.0}, {"draws": 0}, {"target": -1.0}, {"learning_rate": 0.0}, {"iterations": -1}]
)
def test_settings_out_of_range(settings: dict[str, object]) -> None:
    (name,) = settings
    with pytest.raises(InputError, match=rf"mitigation\.threshold_sampling\.{name}="):
        find_mitigations({"threshold_sampling": settings})
