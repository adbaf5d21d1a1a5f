from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from scipy import integrate, optimize, stats
from torch import Tensor, nn

from envs.backbones.execution import Execution
from envs.batches import TrainingSet, draw_batch, encode, endless_batches
from envs.course import one_learner
from envs.finetune import Manner, finetune, one_pass
from envs.groups import find_groups
from envs.losses import denoising_losses, sample_losses
from envs.methods import METHODS, Attachment, find_method
from envs.mitigations import find_mitigations
from envs.mitigations.dp_sgd import NoisyOptimizer, PrivateSteps
from envs.mitigations.sample_gradients import check_sample_gradients, sample_gradients
from envs.seeding import torch_generator
from envs.task import Schedule
from rewards.errors import InputError
from rewards.memorization.membership import membership_auc
from tests.envs.mitigations.conftest import BUDGET, MakeWard, Ward, same

WRAPPED = [name for name in METHODS if name != "importance"]


def learning(ward: Ward) -> dict[str, nn.Parameter]:
    """Every parameter of the method, away from where it starts, so that no gradient is zero."""
    parameters = {name: p for toggle in ward.attachment.parameters for name, p in toggle.items()}
    generator = torch_generator(0, "moved")
    for parameter in parameters.values():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
        parameter.requires_grad_(True)
    return parameters


@pytest.mark.parametrize("method", WRAPPED)
def test_gradients_of_single_samples_are_those_of_autograd(open_ward: MakeWard, method: str) -> None:
    ward = open_ward(method)
    parameters, data = learning(ward), ward.regimen({}).training_set
    rows = torch.arange(3)
    batch = draw_batch(data, rows, torch_generator(0, "batch"), caption_dropout=0.0, timesteps=1000)
    with sample_gradients(ward.backbone.denoiser):
        sample_losses(ward.backbone, batch).mean().backward()
        found: dict[str, Any] = {name: p.grad_sample for name, p in parameters.items()}  # type: ignore[attr-defined]
    for i in range(3):
        alone = sample_losses(ward.backbone, batch.take(rows == i)).mean()
        for name, gradient in zip(parameters, torch.autograd.grad(alone, list(parameters.values())), strict=True):
            difference = (found[name][i] - gradient).norm()
            assert gradient.norm() > 0, name
            assert difference <= 2e-3 * gradient.norm() + 1e-7, name


@pytest.mark.parametrize("method", WRAPPED)
def test_it_trains_what_is_selected_and_nothing_else(open_ward: MakeWard, method: str) -> None:
    ward = open_ward(method)
    base, mask = ward.weights(), Schedule.from_key("00110000")
    trained = ward.treat({"dp_sgd": {}}, mask)
    selected = ward.attachment.selected(mask.phases[0])
    after = ward.weights()
    assert trained.steps == BUDGET.steps
    assert selected
    assert {name for name in base if not torch.equal(base[name], after[name])} == set(selected)
    assert not any(vars(p) for p in ward.backbone.denoiser.parameters()), "opacus left something"
    assert not any(p.requires_grad for p in ward.backbone.denoiser.parameters())


def test_its_figures(ward: Ward) -> None:
    figures = ward.treat({"dp_sgd": {}}).figures
    assert figures["dp_sgd.delta"] == pytest.approx(1 / 60)
    assert figures["dp_sgd.noise_multiplier"] == 1
    assert 0 < figures["dp_sgd.epsilon"] < math.inf
    more = ward.treat({"dp_sgd": {"noise_multiplier": 2.0}}).figures["dp_sgd.epsilon"]
    longer = ward.of(steps=16).treat({"dp_sgd": {}}).figures["dp_sgd.epsilon"]
    assert more < figures["dp_sgd.epsilon"] < longer


def test_epsilon_is_a_bound_that_the_exact_one_keeps() -> None:
    """Of one step with every image in the batch, which is the Gaussian mechanism (Balle & Wang, arXiv 1805.06530)."""
    hook = PrivateSteps(nn.Linear(1, 1), 4.0, 1.0, 1.0, 10, 1e-2, torch.Generator())
    hook.stepped([])

    def delta_at(epsilon: float) -> float:
        a, b = 1 / 8, 4 * epsilon
        return float(stats.norm.cdf(a - b) - math.exp(epsilon) * stats.norm.cdf(-a - b))

    exact = optimize.brentq(lambda epsilon: delta_at(epsilon) - 1e-2, 1e-6, 10)
    assert exact <= hook.figures()["dp_sgd.epsilon"] <= 1.7 * exact


def test_epsilon_of_sampled_batches_follows_the_papers_integral() -> None:
    """Renyi divergence at order 2, by integration, of N(0, s) and its mixture with N(1, s), times the steps."""
    q, s, steps, delta = 0.25, 1.5, 20, 1e-3
    hook = PrivateSteps(nn.Linear(1, 1), s, 1.0, q, 10, delta, torch.Generator())
    for _ in range(steps):
        hook.stepped([])

    def squared_ratio(x: float) -> float:
        null = float(stats.norm.pdf(x, 0, s))
        return ((1 - q) * null + q * float(stats.norm.pdf(x, 1, s))) ** 2 / null

    divergence = math.log(integrate.quad(squared_ratio, -20, 20)[0])
    order_2 = steps * divergence + math.log(1 / 2) - math.log(delta * 2)
    assert hook.figures()["dp_sgd.epsilon"] <= order_2 + 1e-6, "the best order is no worse than the second"


def test_a_target_epsilon_is_met_from_below(ward: Ward) -> None:
    figures = ward.treat({"dp_sgd": {"noise_multiplier": None, "epsilon": 3.0}}).figures
    assert 2.9 < figures["dp_sgd.epsilon"] <= 3.0


def test_batches_are_poisson_samples(ward: Ward) -> None:
    """Each image in each batch with the same probability: 4000 coin tosses an image."""
    hook = PrivateSteps(nn.Linear(1, 1), 1.0, 1.0, 0.5, 6, 0.01, torch.Generator())
    data = ward.regimen({}).training_set
    draws = endless_batches(data, BUDGET, 1000, 0, hooks=[hook])
    counts, sizes, together = torch.zeros(6), [], 0
    for _ in range(4000):
        rows = next(draws).rows
        if not hook._is_empty:
            counts[rows] += 1
        sizes.append(0 if hook._is_empty else len(rows))
        together += int({0, 1} <= set(rows.tolist()))
    assert (counts / 4000 - 0.5).abs().max() < 5 * 0.5 / 4000**0.5
    assert abs(together / 4000 - 0.25) < 5 * 0.43 / 4000**0.5, "one image says nothing about another"
    assert 0 in sizes
    assert 6 in sizes


def noisy(parameter: nn.Parameter, **settings: float) -> NoisyOptimizer:
    plain = torch.optim.SGD([parameter], lr=1.0)
    given = {"noise_multiplier": 0.0, "max_grad_norm": 1.0, "expected_batch_size": 2.0} | settings
    return NoisyOptimizer(plain, **given, generator=torch_generator(0, "noise"))


def step(optimizer: NoisyOptimizer, parameter: nn.Parameter, gradients: Sequence[Sequence[float]]) -> Tensor:
    before = parameter.detach().clone()
    parameter.grad_sample = torch.tensor(gradients)  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad()
    return before - parameter.detach()


def test_each_gradient_is_cut_to_the_norm_and_the_sum_divided_by_the_expected_size() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    moved = step(noisy(parameter), parameter, [[3.0, 4.0], [0.3, 0.0], [0.0, -0.5]])
    torch.testing.assert_close(moved, torch.tensor([0.6 + 0.3, 0.8 - 0.5]) / 2)


def test_the_noise_has_the_stated_size() -> None:
    parameter = nn.Parameter(torch.zeros(20_000))
    moved = step(noisy(parameter, noise_multiplier=3.0, max_grad_norm=2.0), parameter, [[0.0] * 20_000])
    assert float(moved.std()) == pytest.approx(3 * 2 / 2, rel=0.03)
    assert abs(float(moved.mean())) < 5 * 3 / 20_000**0.5


def test_an_empty_batch_is_a_step_of_noise_alone() -> None:
    one, other = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    empty = noisy(one, noise_multiplier=1.0)
    empty.is_empty = lambda: True
    moved = step(empty, one, [[30.0, 40.0]])
    torch.testing.assert_close(moved, step(noisy(other, noise_multiplier=1.0), other, [[0.0, 0.0]]))
    assert moved.abs().min() > 0


def test_one_image_moves_a_step_by_no_more_than_the_bound(ward: Ward) -> None:
    """The sum before noise, with and without one image: what the whole guarantee rests on."""
    bound, data = 0.05, ward.regimen({}).training_set
    parameters = learning(ward)
    batch = draw_batch(data, torch.arange(4), torch_generator(0, "batch"), caption_dropout=0.0, timesteps=1000)

    def summed(rows: Tensor) -> Tensor:
        plain = torch.optim.AdamW(parameters.values())
        optimizer = NoisyOptimizer(plain, noise_multiplier=0.0, max_grad_norm=bound, expected_batch_size=1)
        with sample_gradients(ward.backbone.denoiser):
            sample_losses(ward.backbone, batch.take(rows)).mean().backward()
            optimizer.clip_and_accumulate()
            return torch.cat([p.summed_grad.flatten() for p in parameters.values()])  # type: ignore[attr-defined]

    every = torch.ones(4, dtype=torch.bool)
    whole = summed(every)
    for i in range(4):
        moved = (whole - summed(every & (torch.arange(4) != i))).norm()
        assert 0.99 * bound < moved <= 1.001 * bound, "and these gradients are all longer than the bound"


class _Meddler(PrivateSteps):
    """Moves a frozen parameter, as a faulty wrapper might."""

    def stepped(self, parameters: Sequence[nn.Parameter]) -> None:
        super().stepped(parameters)
        next(p for p in self._denoiser.parameters() if not p.requires_grad).data.add_(1e-3)


class _Sleeper(PrivateSteps):
    """Gives the optimizer a copy of what it is to move."""

    def stepped(self, parameters: Sequence[nn.Parameter]) -> None:
        super().stepped(parameters)
        parameters[-1].data.copy_(self.first)

    def optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        self.first = optimizer.param_groups[0]["params"][-1].detach().clone()
        return super().optimizer(optimizer)


@pytest.mark.parametrize(
    ("faulty", "what"), [(_Meddler, "is frozen and has moved"), (_Sleeper, "was selected and has not moved")]
)
def test_training_something_else_than_what_was_asked_for_is_an_error(
    ward: Ward, faulty: type[PrivateSteps], what: str
) -> None:
    def hooks(number: int) -> PrivateSteps:
        return faulty(ward.backbone.denoiser, 1.0, 1.0, 0.5, 6, 0.01, torch_generator(0, "noise"))

    mask, data = Schedule.from_key("00110000"), ward.regimen({}).training_set
    with pytest.raises(RuntimeError, match=what):
        finetune(ward.backbone, ward.attachment, mask, data, BUDGET, 0, Manner((hooks,), one_learner))


def test_another_seed_gives_other_noise(ward: Ward) -> None:
    assert not same(ward.after({"dp_sgd": {}}, seed=0), ward.after({"dp_sgd": {}}, seed=1))


def test_without_pauses_or_with_them_it_ends_the_same(ward: Ward) -> None:
    class Onlooker:
        every = 3

        def look(self, step: int) -> bool:
            self.looks = getattr(self, "looks", 0) + 1
            return False

        def choice(self) -> int:
            return self.looks - 1

        def figures(self) -> dict[str, float]:
            return {}

    plain, base = ward.after({"dp_sgd": {}}), ward.weights()
    regimen = ward.regimen({"dp_sgd": {}})
    manner = dataclasses.replace(regimen.treatment.manner, watcher=Onlooker)
    trained = finetune(
        ward.backbone, ward.attachment, Schedule.from_key("1" * 8), regimen.training_set, BUDGET, 0, manner
    )
    assert trained.steps == BUDGET.steps
    assert same(ward.weights(), plain)
    assert not same(plain, base)


class _Opaque(nn.Module):
    """Adds a mean over the batch: what one sample gives depends on the others."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.inner(x)
        return output + self.gain * output.mean(dim=0, keepdim=True)


class _Stateful(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.gain = nn.Parameter(torch.ones(1))
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.inner(x) * self.gain
        return output


@pytest.mark.parametrize(
    ("wrapper", "why"), [(_Opaque, r"of .*differs from autograd's"), (_Stateful, "layer with buffers")]
)
def test_a_method_that_opacus_cannot_wrap(ward: Ward, wrapper: Callable[[nn.Module], nn.Module], why: str) -> None:
    denoiser = ward.backbone.denoiser
    denoiser.conv_in = wrapper(denoiser.conv_in).requires_grad_(False)
    parameters = {name: p for name, p in denoiser.named_parameters() if "gain" in name}
    data = ward.regimen({}).training_set
    with pytest.raises(InputError, match=f"mitigation=dp_sgd with method=odd, .*{why}.* — choose another method"):
        check_sample_gradients(ward.backbone, Attachment((parameters,)), "odd", data)
    assert not any(p.requires_grad or vars(p) for p in denoiser.parameters())


def test_a_parameter_that_no_image_reaches(ward: Ward) -> None:
    ward.backbone.denoiser.spare = nn.Linear(2, 2).requires_grad_(False)
    parameters = {"spare.weight": ward.backbone.denoiser.spare.weight}
    with pytest.raises(InputError, match=r"method=odd, .*spare\.weight gets none|does not require grad"):
        check_sample_gradients(ward.backbone, Attachment((parameters,)), "odd", ward.regimen({}).training_set)


def test_importance_is_refused(ward: Ward) -> None:
    backbone, data = ward.backbone, ward.regimen({}).training_set
    attachment = find_method("importance")(
        backbone.denoiser, find_groups(backbone.denoiser, "blocks"), calibration=lambda: one_pass(backbone, data, 4, 0)
    )
    with pytest.raises(InputError, match="mitigation=dp_sgd with method=importance, which chooses"):
        dataclasses.replace(ward, attachment=attachment, method="importance").regimen({"dp_sgd": {}})


@pytest.mark.parametrize(
    ("option", "execution"),
    [
        ("precision", Execution(precision="bf16")),
        ("gradient_checkpointing", Execution(gradient_checkpointing=True)),
        ("compile", Execution(compile=True)),
    ],
)
def test_only_plain_single_precision(ward: Ward, option: str, execution: Execution) -> None:
    ward.backbone.execution = execution
    with pytest.raises(InputError, match=rf"mitigation=dp_sgd with backbone\.{option}="):
        ward.regimen({"dp_sgd": {}})


@pytest.mark.parametrize(
    "settings",
    [{"noise_multiplier": 0.0}, {"noise_multiplier": "1"}, {"max_grad_norm": 0.0}, {"delta": 0.0}, {"delta": 2.0}],
)
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    (name,) = settings
    with pytest.raises(InputError, match=rf"mitigation\.dp_sgd\.{name}="):
        find_mitigations({"dp_sgd": settings})


@pytest.mark.parametrize("settings", [{"epsilon": 8.0}, {"noise_multiplier": None}])
def test_exactly_one_of_noise_and_epsilon(settings: dict[str, float | None]) -> None:
    with pytest.raises(InputError, match=r"noise_multiplier=.* and epsilon=.* — set exactly one"):
        find_mitigations({"dp_sgd": settings})


def test_epsilon_out_of_range() -> None:
    with pytest.raises(InputError, match=r"mitigation\.dp_sgd\.epsilon=0"):
        find_mitigations({"dp_sgd": {"noise_multiplier": None, "epsilon": 0}})


def test_an_epsilon_that_no_noise_reaches(ward: Ward) -> None:
    with pytest.raises(InputError, match=r"mitigation\.dp_sgd\.epsilon=0\.001 — set it higher"):
        ward.regimen({"dp_sgd": {"noise_multiplier": None, "epsilon": 0.001, "delta": 1e-200}})


def test_a_delta_that_gives_an_image_away(ward: Ward) -> None:
    with pytest.raises(InputError, match=r"mitigation\.dp_sgd\.delta=0\.2 — set it below 1 / 6"):
        ward.regimen({"dp_sgd": {"delta": 0.2}})


@pytest.mark.parametrize("other", ["agc", "iet"])
def test_what_breaks_the_guarantee_is_refused(other: str) -> None:
    with pytest.raises(InputError, match=rf"mitigation=\[dp_sgd,{other}\]: .* — choose one of the two"):
        find_mitigations({other: {}, "dp_sgd": {}})


def auc(ward: Ward, chosen: dict[str, dict[str, Any]]) -> float:
    """Of membership inference on the fine-tuned model; the model is put back."""
    base, sets = ward.weights(), [encode(ward.backbone, each) for each in (ward.dataset.train, ward.dataset.heldout)]

    def losses(data: TrainingSet) -> Tensor:
        return denoising_losses(ward.backbone, data.latents, data.states, draws=8, seed=0)

    before = [losses(data) for data in sets]
    ward.treat(chosen)
    train, heldout = (losses(data) - old for data, old in zip(sets, before, strict=True))
    ward.load(base)
    return membership_auc(train, heldout).value


@pytest.mark.slow
def test_members_are_no_longer_told_apart(vivid: Ward) -> None:
    """Overfitted on six images, plain training gives all of them away."""
    assert auc(vivid, {}) == 1
    assert auc(vivid, {"dp_sgd": {"noise_multiplier": 4.0}}) < 0.8


def test_to_import_it_leaves_logging_alone() -> None:
    """opacus gives the root logger a handler; in a process of its own, since here it was imported long ago."""
    said = (
        "import logging; import envs.mitigations.dp_sgd; root = logging.getLogger(); print(root.handlers, root.level)"
    )
    found = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert found.stdout == "[] 30\n"
