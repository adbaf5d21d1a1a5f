from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agents.policy import (
    GroupTokenPolicy,
    MaskableGroupTokenPolicy,
    SelectionNetwork,
    TokenLayout,
    selection_probabilities,
    tokens,
)

FEATURES, TASK, WIDTH = 5, 3, 16


def network() -> SelectionNetwork:
    """With weights of ordinary size: as built, the logits are nearly 0."""
    torch.manual_seed(0)
    built = SelectionNetwork(TokenLayout(FEATURES, TASK, WIDTH))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0, 0.5)
    return built


def observation(batch: int, groups: int, horizon: int = 1, phase: int = 0, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    chosen = torch.randint(2, (batch, horizon, groups), generator=rng)
    chosen[:, phase:] = 0
    return {
        "groups": torch.rand((batch, groups, FEATURES), generator=rng),
        "task": torch.rand((batch, TASK), generator=rng),
        "preference": torch.rand((batch, 1), generator=rng),
        "progress": torch.full((batch, 1), phase / horizon),
        "chosen": chosen,
    }


@settings(deadline=None)  # the first call is slow
@given(order=st.permutations(range(7)), seed=st.integers(0, 5))
def test_reordering_the_groups_reorders_the_probabilities(order: list[int], seed: int) -> None:
    net = network()
    seen = observation(2, 7, horizon=3, phase=2, seed=seed)
    moved = seen | {"groups": seen["groups"][:, order], "chosen": seen["chosen"][:, :, order]}
    torch.testing.assert_close(net.probabilities(moved), net.probabilities(seen)[:, order])
    torch.testing.assert_close(net.critic_latent(tokens(moved)), net.critic_latent(tokens(seen)))


@pytest.mark.parametrize("groups", [1, 8, 53])
def test_one_network_runs_on_any_number_of_groups(groups: int) -> None:
    probabilities = network().probabilities(observation(3, groups))
    assert probabilities.shape == (3, groups)
    assert ((probabilities > 0) & (probabilities < 1)).all()


def test_a_probability_depends_on_the_group_the_others_the_task_and_the_preference() -> None:
    net, seen = network(), observation(1, 4)
    before = net.probabilities(seen)[0]
    for key in ("groups", "task", "preference"):
        changed = {k: v.clone() for k, v in seen.items()}
        changed[key][0, ..., 0] += 0.5
        assert (net.probabilities(changed)[0] != before).all(), key
    changed = {k: v.clone() for k, v in seen.items()}
    changed["groups"][0, 3] += 0.5
    assert net.probabilities(changed)[0, 0] != before[0], "through the mean over all groups"


def test_history_enters_as_the_last_mask_and_the_mean_over_all_phases() -> None:
    seen = observation(1, 3, horizon=4, phase=2)
    seen["chosen"][0, :2] = torch.tensor([[1, 0, 1], [0, 0, 1]])
    last, mean = tokens(seen)[0, :, -2:].T
    assert last.tolist() == [0, 0, 1]
    assert mean.tolist() == [0.25, 0, 0.5]
    at_start = observation(1, 3, horizon=4, phase=0)
    assert not tokens(at_start)[0, :, -2:].any()


def test_token_layout_is_what_tokens_make() -> None:
    assert tokens(observation(2, 3)).shape == (2, 3, TokenLayout(FEATURES, TASK, WIDTH).token)


def test_a_new_policy_is_near_a_fair_coin_for_every_group() -> None:
    torch.manual_seed(1)
    new = SelectionNetwork(TokenLayout(FEATURES, TASK, WIDTH))
    assert (new.probabilities(observation(4, 9)) - 0.5).abs().max() < 0.05


def space_of(groups: int) -> spaces.Dict:
    return spaces.Dict(
        {
            "groups": spaces.Box(0, 1, (groups, FEATURES), np.float32),
            "task": spaces.Box(0, 1, (TASK,), np.float32),
            "preference": spaces.Box(0, 1, (1,), np.float32),
            "progress": spaces.Box(0, 1, (1,), np.float32),
            "chosen": spaces.MultiBinary([1, groups]),
        }
    )


def test_sb3_acts_by_the_networks_probabilities() -> None:
    groups = 6
    torch.manual_seed(0)
    policy = GroupTokenPolicy(space_of(groups), spaces.MultiBinary(groups), lambda _: 1e-3, width=WIDTH)
    policy.network.load_state_dict(network().state_dict())
    seen = observation(5, groups)
    distribution: Any = policy.get_distribution(seen).distribution
    torch.testing.assert_close(distribution.probs, policy.network.probabilities(seen))

    actions = torch.randint(2, (5, groups), generator=torch.Generator().manual_seed(3)).float()
    values, log_likelihood, _ = policy.evaluate_actions(seen, actions)
    p = policy.network.probabilities(seen)
    torch.testing.assert_close(log_likelihood, torch.where(actions == 1, p, 1 - p).log().sum(1))
    assert values.shape == (5, 1)
    trained = {id(p) for group in policy.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in policy.parameters()}, "nothing outside the network, nothing left out"


def maskable(groups: int) -> Any:
    """Its base class is annotated for observations of one array."""
    policy = MaskableGroupTokenPolicy(space_of(groups), spaces.MultiBinary(groups), lambda _: 1e-3, width=WIDTH)
    policy.network.load_state_dict(network().state_dict())
    return policy


def test_without_masks_the_maskable_policy_is_the_other() -> None:
    policy, seen = maskable(6), observation(5, 6)
    actions = torch.randint(2, (5, 6), generator=torch.Generator().manual_seed(3)).float()
    values, log_likelihood, entropy = policy.evaluate_actions(seen, actions)
    p = policy.network.probabilities(seen)
    torch.testing.assert_close(log_likelihood, torch.where(actions == 1, p, 1 - p).log().sum(1))
    assert entropy is not None
    torch.testing.assert_close(entropy, -(p * p.log() + (1 - p) * (1 - p).log()).sum(1))
    torch.testing.assert_close(values, policy.network.value(policy.network.critic_latent(tokens(seen))))
    trained = {id(p) for group in policy.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in policy.parameters()}


def test_a_group_that_is_masked_is_off_with_certainty_and_teaches_nothing() -> None:
    policy, seen = maskable(6), observation(64, 6)
    free = np.asarray([True, False, True, True, False, True])
    masks = np.tile(np.stack([np.ones(6, dtype=bool), free], axis=1).reshape(-1), (64, 1))
    torch.manual_seed(0)
    actions, _, log_likelihood = policy(seen, action_masks=masks)
    assert not actions[:, ~free].any()
    assert actions[:, free].float().mean(0).min() > 0, "the others are on at times"
    p = policy.network.probabilities(seen)
    torch.testing.assert_close(log_likelihood, torch.where(actions == 1, p, 1 - p)[:, free].log().sum(1))
    _, again, entropy = policy.evaluate_actions(seen, actions.float(), action_masks=masks)
    torch.testing.assert_close(again, log_likelihood)
    assert entropy is not None
    torch.testing.assert_close(entropy, -(p * p.log() + (1 - p) * (1 - p).log())[:, free].sum(1), rtol=1e-4, atol=1e-4)
    logits = torch.zeros(64, 6, requires_grad=True)
    policy.action_net.forward = lambda latent: logits
    policy.evaluate_actions(seen, actions.float(), action_masks=masks)[1].sum().backward()
    assert logits.grad is not None
    assert (logits.grad[:, free] != 0).all()
    assert not logits.grad[:, ~free].any()


def test_what_is_frozen_has_probability_0_and_moves_no_other() -> None:
    net, seen = network(), observation(1, 4)
    groups, task = seen["groups"][0].numpy(), seen["task"][0].numpy()
    free = selection_probabilities(net, groups, task, 0.3)
    assert ((free > 0) & (free < 1)).all()
    frozen = selection_probabilities(net, groups, task, 0.3, (False, True, False, True))
    assert frozen.tolist() == [free[0], 0, free[2], 0]
    assert frozen.dtype == free.dtype
    assert selection_probabilities(net, groups, task, 0.3, (False,) * 4).tolist() == free.tolist()
