"""A policy in a zip of stable-baselines3: loading one runs code, so the user has to say that it may."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from agents.export import load_archive
from agents.policy import GroupTokenPolicy
from envs.selection import make_env
from rewards.errors import InputError


def test_a_zip_is_refused_unless_it_is_trusted(tmp_path: Path) -> None:
    flag, archive = tmp_path / "ran", tmp_path / "policy.zip"

    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (flag,)

    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data", pickle.dumps(Harmful()))
    with pytest.raises(InputError, match=r"runs code from it — name a run folder; .*trust_zip=true"):
        load_archive(archive, trusted=False)
    assert not flag.exists()


def test_a_trusted_zip_gives_its_network(tmp_path: Path) -> None:
    env = make_env()
    model = PPO(GroupTokenPolicy, env, policy_kwargs={"width": 8}, n_steps=2, batch_size=2, seed=0, device="cpu")
    model.save(tmp_path / "policy.zip")
    network = load_archive(tmp_path / "policy.zip", trusted=True)
    assert isinstance(model.policy, GroupTokenPolicy)
    for name, tensor in model.policy.network.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])
    observation = {key: torch.as_tensor(np.asarray(value))[None] for key, value in env.reset(seed=0)[0].items()}
    assert network.probabilities(observation).shape == (1, 8)


@pytest.mark.parametrize("content", [b"", b"no zip at all"])
def test_what_is_no_archive_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "policy.zip").write_bytes(content)
    with pytest.raises(InputError, match="does not load") as error:
        load_archive(tmp_path / "policy.zip", trusted=True)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="does not load"):
        load_archive(tmp_path / "nowhere.zip", trusted=True)
