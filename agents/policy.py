"""The selection policy: one network over layer-group tokens, whatever their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from sb3_contrib.common.maskable.distributions import MaskableDistribution
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule as LearningRate
from torch import Tensor, nn

_ACTIVATION = nn.Tanh


@dataclass(frozen=True)
class TokenLayout:
    """Sizes that a selection network is built for.

    Attributes:
        group_features: Columns of the group matrix.
        task_features: Length of the task vector.
        width: Of the hidden layers.
    """

    group_features: int
    task_features: int
    width: int

    @property
    def token(self) -> int:
        """Length of a token: group features, context (task, preference, progress), and what was chosen so far."""
        return self.group_features + self.task_features + 2 + 2


def tokens(observation: Mapping[str, Tensor]) -> Tensor:
    """One token a group, ``(batch, groups, layout.token)``.

    What was chosen in earlier phases enters as the last phase's bit and the mean over all phases, so that the token
    does not grow with the horizon.

    Args:
        observation: ``groups`` (b, g, f), ``task`` (b, t), ``preference`` (b, 1), ``progress`` (b, 1) and ``chosen``
            (b, h, g).
    """
    groups, chosen, progress = observation["groups"], observation["chosen"].float(), observation["progress"]
    horizon = chosen.shape[1]
    done = (progress * horizon).round().long().clamp(min=0, max=horizon)
    previous = (done - 1).clamp(min=0)[:, :, None].expand(-1, -1, groups.shape[1])
    last = chosen.gather(1, previous).squeeze(1) * (done > 0)
    history = torch.stack([last, chosen.mean(1)], dim=-1)
    context = torch.cat([observation["task"], observation["preference"], progress], dim=-1)
    return torch.cat([groups, context[:, None, :].expand(-1, groups.shape[1], -1), history], dim=-1)


class SelectionNetwork(nn.Module):
    """Deep sets (Zaheer et al., arXiv 1703.06114): shared weights for all tokens, no positions.

    A group's logit depends on its own token and on the mean over all; the value on the mean alone. So the network runs
    on any number of groups, and reordering the groups reorders the logits.
    """

    def __init__(self, layout: TokenLayout) -> None:
        super().__init__()
        self.layout = layout
        width = layout.width
        self.embed = nn.Sequential(
            nn.Linear(layout.token, width), _ACTIVATION(), nn.Linear(width, width), _ACTIVATION()
        )
        self.actor = nn.Sequential(nn.Linear(2 * width, width), _ACTIVATION())
        self.critic = nn.Sequential(nn.Linear(width, width), _ACTIVATION())
        self.logit = nn.Sequential(nn.Linear(width, 1), nn.Flatten(start_dim=1))
        self.value = nn.Linear(width, 1)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight, gain=2**0.5)
                nn.init.zeros_(module.bias)
        # Every group starts near a fair coin: the first rollout explores.
        for layer, gain in ((self.logit[0], 0.01), (self.value, 1.0)):
            assert isinstance(layer, nn.Linear)
            nn.init.orthogonal_(layer.weight, gain=gain)

    def actor_latent(self, token: Tensor) -> Tensor:
        """``(batch, groups, token)`` to ``(batch, groups, width)``."""
        embedded = self.embed(token)
        pooled = embedded.mean(1, keepdim=True).expand_as(embedded)
        latent: Tensor = self.actor(torch.cat([embedded, pooled], dim=-1))
        return latent

    def critic_latent(self, token: Tensor) -> Tensor:
        """``(batch, groups, token)`` to ``(batch, width)``."""
        latent: Tensor = self.critic(self.embed(token).mean(1))
        return latent

    @torch.inference_mode()
    def probabilities(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Probability that each group is selected, ``(batch, groups)``."""
        probability: Tensor = torch.sigmoid(self.logit(self.actor_latent(tokens(observation))))
        return probability


def selection_probabilities(
    network: SelectionNetwork,
    groups: NDArray[np.float32],
    task: NDArray[np.float32],
    preference: float,
    frozen: Sequence[bool] = (),
) -> NDArray[np.float32]:
    """Probability that each group is selected in a one-phase episode, ``(g,)``; 0 where it is frozen.

    Args:
        network: What decides.
        groups: ``(g, f)``.
        task: ``(t,)``.
        preference: Weight of privacy in [0, 1].
        frozen: One entry a group, True where it stays off; empty if none does.
    """
    probabilities = network.probabilities(observed(groups, task, preference))[0].numpy()
    return np.where(np.asarray(frozen, dtype=bool), np.float32(0), probabilities) if len(frozen) else probabilities


def observed(groups: NDArray[np.float32], task: NDArray[np.float32], preference: float) -> dict[str, Tensor]:
    """The first observation of a one-phase episode, as a batch of one."""
    return {
        "groups": torch.from_numpy(groups)[None],
        "task": torch.from_numpy(task)[None],
        "preference": torch.tensor([[preference]], dtype=torch.float32),
        "progress": torch.zeros(1, 1),
        "chosen": torch.zeros(1, 1, len(groups)),
    }


class _Tokens(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Dict, layout: TokenLayout) -> None:
        super().__init__(observation_space, features_dim=layout.token)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        return tokens(observations)


class _Latents(nn.Module):
    """The two towers under the names that `ActorCriticPolicy` calls."""

    def __init__(self, network: SelectionNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: Tensor) -> Tensor:
        return self.network.actor_latent(features)

    def forward_critic(self, features: Tensor) -> Tensor:
        return self.network.critic_latent(features)


class _TokenActorCritic:
    """What both stable-baselines3 policies share: a `SelectionNetwork` in place of the usual extractor and heads.

    Args:
        observation_space: Of `ParameterSelectionEnv`.
        action_space: MultiBinary.
        lr_schedule: Learning rate over progress.
        width: Of the hidden layers.
        kwargs: Passed on.
    """

    layout: TokenLayout
    mlp_extractor: Any

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.MultiBinary,
        lr_schedule: LearningRate,
        width: int,
        **kwargs: Any,
    ) -> None:
        groups, task = observation_space["groups"], observation_space["task"]
        assert groups.shape is not None
        assert task.shape is not None
        self.layout = TokenLayout(groups.shape[1], task.shape[0], width)
        extractor = {"features_extractor_class": _Tokens, "features_extractor_kwargs": {"layout": self.layout}}
        super().__init__(observation_space, action_space, lr_schedule, **extractor, **kwargs)  # type: ignore[call-arg]

    @property
    def network(self) -> SelectionNetwork:
        """What is trained and exported."""
        assert isinstance(self.mlp_extractor, _Latents)
        return self.mlp_extractor.network

    def _build(self, lr_schedule: LearningRate) -> None:
        policy: Any = self
        network = SelectionNetwork(self.layout)
        policy.mlp_extractor = _Latents(network)
        policy.action_net, policy.value_net = network.logit, network.value
        policy.optimizer = policy.optimizer_class(network.parameters(), lr=lr_schedule(1), **policy.optimizer_kwargs)


class GroupTokenPolicy(_TokenActorCritic, ActorCriticPolicy):
    """`SelectionNetwork` as a stable-baselines3 policy with independent Bernoulli actions."""


class MaskableGroupTokenPolicy(_TokenActorCritic, MaskableActorCriticPolicy):
    """The same for sb3-contrib's MaskablePPO: a group that is frozen is off with certainty, and teaches nothing."""

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> MaskableDistribution:
        # A Bernoulli with logit x is a categorical with logits 0 for off and x for on.
        on = self.action_net(latent_pi)
        logits = torch.stack([torch.zeros_like(on), on], dim=-1).flatten(start_dim=1)
        return self.action_dist.proba_distribution(action_logits=logits)
