"""A policy file is data: safetensors and JSON. Loading one runs no code from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from stable_baselines3 import PPO

from agents.policy import GroupTokenPolicy, SelectionNetwork, TokenLayout, selection_probabilities
from envs.task import Mask
from rewards.errors import InputError

SCHEMA = 1
_NETWORK = "deep_sets"


@dataclass(frozen=True)
class ExportedPolicy:
    """A selection network with the names of what it was trained to look at.

    Attributes:
        network: In eval mode.
        group_features: Names of the group matrix's columns.
        task_features: Names of the task vector's entries.
        trained_on: Ids and names of the tasks that it learned from.
    """

    network: SelectionNetwork
    group_features: tuple[str, ...]
    task_features: tuple[str, ...]
    trained_on: tuple[dict[str, Any], ...] = ()

    def probabilities(
        self,
        groups: NDArray[np.float32],
        task: NDArray[np.float32],
        preference: float,
        frozen: Sequence[bool] = (),
    ) -> NDArray[np.float32]:
        """Probability that each group is selected in a one-phase episode, ``(g,)``.

        Args:
            groups: ``(g, f)``, columns as in ``group_features``.
            task: ``(t,)``, entries as in ``task_features``.
            preference: Weight of privacy in [0, 1].
            frozen: One entry a group, True where it stays off; empty if none does.
        """
        return selection_probabilities(self.network, groups, task, preference, frozen)

    def choose(
        self,
        groups: NDArray[np.float32],
        task: NDArray[np.float32],
        preference: float,
        frozen: Sequence[bool] = (),
    ) -> Mask:
        """The likeliest mask: the groups whose probability is above one half. See `probabilities`."""
        return tuple(bool(p > 0.5) for p in self.probabilities(groups, task, preference, frozen))


def load_archive(path: str | Path, *, trusted: bool) -> SelectionNetwork:
    """The network of a zip that stable-baselines3 wrote with `GroupTokenPolicy`; loading one **runs code from it**.

    Args:
        path: The file.
        trusted: What the user says of it.

    Raises:
        InputError: If it is not trusted, cannot be read, or holds another policy.
    """
    if not trusted:
        raise InputError(
            f"{path} is a zip of stable-baselines3, and loading one runs code from it",
            "name a run folder; if you made it yourself, trust_zip=true",
        )
    try:
        policy = PPO.load(path, device="cpu").policy
    except Exception as error:  # what unpickling somebody's file raises cannot be listed
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} does not load: {reason}", "save it again with PPO.save") from error
    if not isinstance(policy, GroupTokenPolicy):
        raise InputError(f"{path} holds a {type(policy).__name__}", "name one that was trained with GroupTokenPolicy")
    return policy.network.eval()


def save_policy(folder: Path, policy: ExportedPolicy) -> None:
    """Writes ``policy.safetensors`` and ``policy.json``, each in one rename, the JSON last."""
    card = {
        "schema": SCHEMA,
        "network": _NETWORK,
        "width": policy.network.layout.width,
        "group_features": list(policy.group_features),
        "task_features": list(policy.task_features),
        "trained_on": list(policy.trained_on),
    }
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.network.state_dict().items()}
    partial = folder / ".policy.safetensors.partial"
    save_file(weights, partial)
    partial.replace(folder / "policy.safetensors")
    partial = folder / ".policy.json.partial"
    partial.write_text(json.dumps(card, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(folder / "policy.json")


def load_policy(folder: str | Path) -> ExportedPolicy:
    """Reads what `save_policy` wrote.

    Raises:
        InputError: If a file is missing, truncated, of an unknown schema, or the two do not belong together.
    """
    folder = Path(folder)
    remedy = "name a run folder with policy.safetensors and policy.json"
    try:
        card = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "policy.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"no policy can be read from {folder}: {str(error).splitlines()[0]}", remedy) from error
    kind = (card.get("schema"), card.get("network")) if isinstance(card, dict) else None
    if kind != (SCHEMA, _NETWORK):
        raise InputError(f"{folder / 'policy.json'} is of {kind}, this version reads {(SCHEMA, _NETWORK)}", remedy)
    try:
        layout = TokenLayout(len(card["group_features"]), len(card["task_features"]), int(card["width"]))
        network = SelectionNetwork(layout)
        network.load_state_dict(weights)
        names = tuple(card["group_features"]), tuple(card["task_features"])
        trained_on = tuple(card["trained_on"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"the weights in {folder} do not fit its policy.json: {reason}", remedy) from error
    return ExportedPolicy(network.eval(), *names, trained_on)
