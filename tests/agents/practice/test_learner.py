from __future__ import annotations

import dataclasses
import itertools
import random

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from torch import Tensor

from agents.policy import SelectionNetwork, selection_probabilities, tokens
from agents.practice.landscape import Landscape, unit_objective, utilities_at
from agents.practice.learner import new_network, practise
from agents.practice.settings import PracticeSettings
from envs.vector import SelectionVecEnv
from tests.agents.search.problems import Invented

INVENTED = [Invented(6, seed) for seed in range(3)]
LANDSCAPES = [Landscape.of_table(each.experience(f"task {i}")) for i, each in enumerate(INVENTED)]
QUICK = PracticeSettings(
    environments=6, episodes=2, updates=3, updates_after_ascent=3, epochs=2, width=16, ascent=5, cloning=5
)
WEIGHTS = (0.25, 0.5, 0.75)


def weights(network: SelectionNetwork) -> list[Tensor]:
    return [tensor.clone() for tensor in network.state_dict().values()]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def probabilities(
    network: SelectionNetwork, landscape: Landscape, preference: float = 0.5, frozen: tuple[bool, ...] = ()
) -> NDArray[np.float32]:
    return selection_probabilities(network, landscape.group_features, landscape.task_features, preference, frozen)


def mean_share_of_best(network: SelectionNetwork, frozen: tuple[bool, ...] = (), *, fair: bool = False) -> float:
    """Expected utility of the policy's masks as a share of the best's, over tasks and preferences."""
    shares = []
    off = np.asarray(frozen or (False,) * 6)
    for invented, landscape in zip(INVENTED, LANDSCAPES, strict=True):
        for w in WEIGHTS:
            p = np.where(off, 0, 0.5) if fair else probabilities(network, landscape, w, frozen)
            utilities = {mask: invented.objective.utility(axes, w) for mask, axes in invented.axes.items()}
            allowed = [mask for mask in utilities if not (np.asarray(mask) & off).any()]
            expected = sum(np.where(mask, p, 1 - p).prod() * utilities[mask] for mask in allowed)
            shares.append(float(expected) / max(utilities[mask] for mask in allowed))
    return float(np.mean(shares))


def test_the_same_seed_gives_the_same_policy_and_another_seed_another() -> None:
    first = weights(practise(LANDSCAPES, QUICK, seed=1))
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002  # what stable-baselines3 draws from
    assert equal(weights(practise(LANDSCAPES, QUICK, seed=1)), first)
    assert not equal(weights(practise(LANDSCAPES, QUICK, seed=2)), first)


def test_nobody_elses_chance_or_threads_are_touched() -> None:
    torch.set_num_threads(2)
    try:
        before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
        practise(LANDSCAPES, QUICK, seed=1)
        after = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert torch.equal(before[0], after[0])
    assert str(before[1]) == str(after[1])
    assert before[2] == after[2]


@pytest.mark.parametrize("updates", [0, 1])
def test_it_takes_one_thread_whatever_the_caller_has(monkeypatch: pytest.MonkeyPatch, updates: int) -> None:
    seen: set[int] = set()
    latent = SelectionNetwork.actor_latent

    def watched(self: SelectionNetwork, token: Tensor) -> Tensor:
        seen.add(torch.get_num_threads())
        return latent(self, token)

    monkeypatch.setattr(SelectionNetwork, "actor_latent", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        settings = PracticeSettings(environments=3, episodes=1, updates_after_ascent=updates, ascent=2)
        practise(LANDSCAPES, settings, seed=0)
    finally:
        torch.set_num_threads(before)
    assert seen == {1}


def test_a_given_network_is_where_it_starts_and_is_left_as_it_is() -> None:
    given = new_network(LANDSCAPES[0], 24, seed=3)
    before = weights(given)
    idle = PracticeSettings(environments=3, episodes=1, updates=0)
    assert equal(weights(practise(LANDSCAPES, idle, seed=0, network=given)), before), "no updates, and no ascent"
    learned = practise(LANDSCAPES, QUICK, seed=0, network=given)
    assert not equal(weights(learned), before)
    assert equal(weights(given), before)
    assert learned.layout.width == 24, "the network's, not the settings'"


def test_a_new_network_is_a_function_of_its_seed() -> None:
    state = torch.get_rng_state()
    first, again, other = (new_network(LANDSCAPES[0], 16, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(weights(first), weights(again))
    assert not equal(weights(first), weights(other))
    assert np.abs(probabilities(first, LANDSCAPES[0]) - 0.5).max() < 0.05


def test_practice_finds_good_masks_of_several_tasks_at_all_preferences() -> None:
    settings = PracticeSettings(
        environments=24, episodes=4, updates=100, learning_rate=6e-3, ascent=0, cloning=0, width=32, blur=0.0
    )
    learned = practise(LANDSCAPES, settings, seed=0)
    start = mean_share_of_best(learned, fair=True)
    assert mean_share_of_best(learned) > start + 0.4 * (1 - start), start


def test_cloning_alone_imitates_the_best_masks() -> None:
    settings = PracticeSettings(
        environments=6, episodes=1, updates=0, ascent=0, cloning=400, learning_rate=6e-3, width=32, blur=0.0
    )
    learned = practise(LANDSCAPES, settings, seed=0, preference=0.5)
    for landscape in LANDSCAPES:
        assert tuple(bool(p > 0.5) for p in probabilities(learned, landscape)) == landscape.best(0.5)


def test_what_is_frozen_is_never_on_and_plays_no_role() -> None:
    frozen = (False, True, False, False, True, False)
    asked: list[NDArray[np.bool_]] = []

    def watched(landscape: Landscape) -> Landscape:
        def axes(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
            asked.append(masks)
            return landscape.axes(masks)

        found = Landscape(landscape.group_features, landscape.task_features, axes, landscape.objective)
        assert found.regret is not None  # looks at every mask
        assert found.best(0.5)
        asked.clear()
        return found

    settings = PracticeSettings(environments=24, episodes=4, updates=30, ascent=0, cloning=0, width=32, blur=0.0)
    learned = practise([watched(landscape) for landscape in LANDSCAPES], settings, seed=0, frozen=frozen)
    assert asked
    assert not np.concatenate(asked)[:, np.asarray(frozen)].any()
    start = mean_share_of_best(learned, frozen, fair=True)
    assert mean_share_of_best(learned, frozen) > start + 0.3 * (1 - start)


def test_cloning_imitates_the_best_of_the_masks_that_may_be_asked_for() -> None:
    settings = PracticeSettings(
        environments=6, episodes=1, updates=0, ascent=0, cloning=400, learning_rate=6e-3, width=32, blur=0.0
    )
    for invented, landscape in zip(INVENTED, LANDSCAPES, strict=True):
        best = landscape.best(0.5)
        frozen = tuple(i == best.index(True) for i in range(6))
        utilities = {m: invented.objective.utility(a, 0.5) for m, a in invented.axes.items() if not m[best.index(True)]}
        learned = practise([landscape], settings, seed=0, preference=0.5, frozen=frozen)
        chosen = tuple(bool(p > 0.5) for p in probabilities(learned, landscape, 0.5, frozen))
        assert chosen == max(utilities, key=lambda mask: utilities[mask])


@pytest.mark.parametrize(("blur", "distinct"), [(0.0, 1), (0.1, 20)])
def test_features_are_blurred_anew_in_every_episode(
    monkeypatch: pytest.MonkeyPatch, blur: float, distinct: int
) -> None:
    seen: list[NDArray[np.float32]] = []
    unwatched = SelectionVecEnv.step_wait

    def watched(self: SelectionVecEnv) -> VecEnvStepReturn:
        found = unwatched(self)
        assert isinstance(found[0], dict)
        seen.extend(found[0]["groups"])
        return found

    settings = PracticeSettings(environments=4, episodes=5, updates=1, epochs=1, width=8, ascent=0, blur=blur)
    monkeypatch.setattr(SelectionVecEnv, "step_wait", watched)
    practise(LANDSCAPES[:1], settings, seed=0)
    assert len(seen) == 20
    assert len({each.tobytes() for each in seen}) == distinct
    off = np.stack(seen) - LANDSCAPES[0].group_features
    scale = LANDSCAPES[0].group_features.std(axis=0)
    used = scale > 0
    assert (off[..., used] / scale[used]).std() == pytest.approx(blur, rel=0.25)
    assert not off[..., ~used].any()


@pytest.mark.parametrize(
    ("settings", "updates"),
    [
        (PracticeSettings(ascent=5, cloning=7, updates=3), 5),
        (PracticeSettings(ascent=5, cloning=7, updates=3, updates_after_ascent=2), 5 + 2),
        (PracticeSettings(ascent=0, cloning=7, updates=3), 7 + 3),
        (PracticeSettings(ascent=0, cloning=0, updates=3), 3),
    ],
)
def test_ppo_follows_what_leaves_it_something_to_find(settings: PracticeSettings, updates: int) -> None:
    seen: list[SelectionNetwork] = []
    practise(LANDSCAPES, dataclasses.replace(settings, environments=3, width=8), seed=0, watch=seen.append)
    assert len(seen) == updates


def test_an_ascent_alone_finds_good_masks_of_several_tasks_at_all_preferences() -> None:
    settings = PracticeSettings(
        environments=48, updates=0, ascent=600, learning_rate=3e-3, entropy=0.3, width=32, blur=0.0
    )
    learned = practise(LANDSCAPES, settings, seed=0)
    start = mean_share_of_best(learned, fair=True)
    assert mean_share_of_best(learned) > start + 0.8 * (1 - start), start


@pytest.mark.parametrize("frozen", [(), (False, True, False, False, True, False)])
def test_an_ascent_follows_the_gradient_of_what_a_policy_is_expected_to_get(frozen: tuple[bool, ...]) -> None:
    """One step of Adam moves every weight by the learning rate, along the sign of its gradient."""
    landscape = LANDSCAPES[0]
    settings = PracticeSettings(environments=2, updates=0, ascent=1, entropy=0.0, width=8, blur=0.0)
    idle = dataclasses.replace(settings, ascent=0, cloning=0)
    before, after = (practise([landscape], each, seed=2, preference=0.5, frozen=frozen) for each in (idle, settings))
    free = ~np.asarray(frozen or (False,) * 6)
    masks = np.asarray([mask for mask in itertools.product((False, True), repeat=6) if not (mask & ~free).any()])
    quality, privacy = landscape.axes(masks).T
    utilities = utilities_at(unit_objective(landscape.objective), quality, privacy, 0.5)
    before.requires_grad_(True)
    seen = {
        "groups": torch.from_numpy(landscape.group_features)[None],
        "task": torch.from_numpy(landscape.task_features)[None],
        "preference": torch.full((1, 1), 0.5),
        "progress": torch.zeros(1, 1),
        "chosen": torch.zeros(1, 1, 6),
    }
    p_on = torch.sigmoid(before.logit(before.actor_latent(tokens(seen))))[0]
    p = torch.where(torch.from_numpy(masks), p_on, 1 - p_on)[:, free].prod(dim=1)
    (p * torch.from_numpy(utilities).float()).sum().backward()
    moved = 0
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        if old.grad is None:  # of the value head alone
            assert torch.equal(new, old)
            continue
        clear = old.grad.abs() > 1e-5
        moved += int(clear.sum())
        torch.testing.assert_close(
            (new - old)[clear], settings.learning_rate * old.grad.sign()[clear], rtol=0.01, atol=0
        )
    assert moved > 20
