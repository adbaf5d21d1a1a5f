from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.export import ExportedPolicy, load_policy, save_policy
from agents.policy import SelectionNetwork, TokenLayout
from rewards.errors import InputError

GROUPS = np.random.default_rng(0).random((5, 2), dtype=np.float32)
TASK = np.random.default_rng(1).random(3, dtype=np.float32)


def policy() -> ExportedPolicy:
    torch.manual_seed(0)
    network = SelectionNetwork(TokenLayout(2, 3, 8))
    with torch.no_grad():
        network.get_parameter("logit.0.weight").mul_(300)
        network.get_parameter("logit.0.bias").fill_(1.95)  # probabilities on both sides of one half
    return ExportedPolicy(network, ("depth", "share"), ("a", "b", "c"), ({"task": "0123", "env": "phantom"},))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_policy(tmp_path, policy())
    return tmp_path


def test_what_is_loaded_is_what_was_saved(saved: Path) -> None:
    loaded = load_policy(saved)
    assert (loaded.group_features, loaded.task_features, loaded.trained_on) == (
        policy().group_features,
        policy().task_features,
        policy().trained_on,
    )
    for preference in (0.0, 0.3, 1.0):
        before, after = (p.probabilities(GROUPS, TASK, preference) for p in (policy(), loaded))
        assert np.array_equal(before, after)
    assert len(set(loaded.probabilities(GROUPS, TASK, 0.5).tolist())) == 5
    assert {path.name for path in saved.iterdir()} == {"policy.safetensors", "policy.json"}


def test_a_loaded_policy_runs_on_another_number_of_groups_and_in_any_order(saved: Path) -> None:
    loaded = load_policy(saved)
    more = np.concatenate([GROUPS, GROUPS[::-1] / 2])
    assert loaded.probabilities(more, TASK, 0.5).shape == (10,)
    forward, backward = (loaded.probabilities(np.ascontiguousarray(g), TASK, 0.5) for g in (more, more[::-1]))
    np.testing.assert_allclose(forward, backward[::-1], rtol=1e-5)


def test_the_chosen_mask_is_the_likeliest(saved: Path) -> None:
    loaded = load_policy(saved)
    p = loaded.probabilities(GROUPS, TASK, 0.5)
    assert p.min() < 0.5 < p.max()
    assert loaded.choose(GROUPS, TASK, 0.5) == tuple(p > 0.5)


def test_a_pickle_is_refused_and_not_run(saved: Path) -> None:
    flag = saved / "ran"

    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (flag,)

    (saved / "policy.safetensors").write_bytes(pickle.dumps({"weights": Harmful()}))
    with pytest.raises(InputError, match="no policy can be read"):
        load_policy(saved)
    assert not flag.exists()


@pytest.mark.parametrize("name", ["policy.safetensors", "policy.json"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99, None])
def test_a_truncated_or_missing_file_is_refused(saved: Path, name: str, share: float | None) -> None:
    file = saved / name
    content = file.read_bytes()
    if share is None:
        file.unlink()
    else:
        file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match="no policy can be read") as caught:
        load_policy(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, r"\(2, 'deep_sets'\), this version reads \(1, "),
        ({"schema": None}, "this version reads"),
        ({"network": "transformer"}, "transformer"),
        ({"width": 9}, "do not fit"),
        ({"width": "wide"}, "do not fit"),
        ({"group_features": ["depth"]}, "do not fit"),
        ({"task_features": 3}, "do not fit"),
    ],
)
def test_a_card_that_says_something_else_is_refused(saved: Path, change: dict[str, Any], message: str) -> None:
    card = json.loads((saved / "policy.json").read_text())
    (saved / "policy.json").write_text(json.dumps(card | change))
    with pytest.raises(InputError, match=message):
        load_policy(saved)


@pytest.mark.parametrize("card", ["[]", "3", '"text"', "{}"])
def test_a_card_that_is_no_card_is_refused(saved: Path, card: str) -> None:
    (saved / "policy.json").write_text(card)
    with pytest.raises(InputError, match="this version reads"):
        load_policy(saved)
