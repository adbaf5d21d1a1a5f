"""``python -m agents.finetune mitigation=...`` from the call to the files; small, in earnest."""

from __future__ import annotations

import functools
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from envs.backbones.base import Backbone
from envs.backbones.latent import LatentBackbone
from envs.generate import Steering
from envs.mitigations import MITIGATIONS, Mitigation, Stage, Treatment
from envs.mitigations.base import Situation
from tests.agents.command import Double, read_json
from tests.agents.test_bad_input import refused_in_one_line
from tests.agents.test_finetune_command import (
    SMALL,
    denoiser_of,
    finetune,
    finetuned,
    interrupted_in_step,
    result_of,
    same,
    snippets,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

AGC = ("mitigation=agc", "mitigation.agc.mem_ratio=1", "mitigation.agc.decay=0")
"""Leaves out what is below the last loss at its timestep: half of what comes again."""


@dataclass(frozen=True)
class Zeroed(Mitigation):
    """Every second scale before the last convolution is zero in the trained model."""

    every: int = 2
    name: ClassVar[str] = "zeroed"
    stage: ClassVar[Stage] = Stage.WEIGHTS
    source: ClassVar[str] = "Nobody et al., 2026"

    def treatment(self, situation: Situation) -> Treatment:
        @contextmanager
        def edit() -> Iterator[Mapping[str, float]]:
            weight: Any = situation.backbone.denoiser.get_parameter("conv_norm_out.weight")
            before = weight.detach().clone()
            with torch.no_grad():
                weight[:: self.every] = 0
            yield {"zeroed.share": 1 / self.every}
            with torch.no_grad():
                weight.copy_(before)

        return Treatment(edits=(edit,))


@dataclass(frozen=True)
class Noticed(Mitigation):
    """Writes down how many images a sampler starts with, and changes nothing."""

    name: ClassVar[str] = "noticed"
    stage: ClassVar[Stage] = Stage.SAMPLING
    source: ClassVar[str] = "Somebody et al., 2026"

    def treatment(self, situation: Situation) -> Treatment:
        class Notice(Steering):
            def states(self, backbone: Backbone, states: Tensor, empty_state: Tensor, noise: Tensor) -> Tensor:
                with Path("noticed.txt").open("a") as file:
                    file.write(f"{len(noise)}\n")
                return states

        return Treatment(steerings=(Notice(),))


def registered() -> None:
    """The command knows them."""
    MITIGATIONS.update({each.name: each for each in (Zeroed, Noticed)})


def few_timesteps(then: Double | None = None) -> None:
    """Trains at the first four timesteps, so that a few steps meet each of them again."""
    init = LatentBackbone.__init__

    def initialised(self: LatentBackbone, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.timesteps = 4

    LatentBackbone.__init__ = initialised  # type: ignore[method-assign]
    if then is not None:
        then()


@pytest.fixture(scope="module")
def small(pipeline_folder: Path) -> tuple[str, ...]:
    metrics = ("reward.metrics=[copy_rate]", "reward.final_metrics=[copy_rate,kid]", "validation.grid=0")
    return (*SMALL, *metrics, f"backbone.path={pipeline_folder}", "backbone.name=tiny")


def test_a_run_with_agc_that_was_killed_ends_as_the_one_that_was_not(tmp_path: Path, small: tuple[str, ...]) -> None:
    call = (*small, "mask=[down_blocks.1,up_blocks.0]", *AGC)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run = finetuned(*call, folder=whole, double=few_timesteps)
    result = read_json(run / "result.json")
    assert result["mitigations"]["chosen"] == {
        "agc": {
            "settings": {"mem_ratio": 1, "decay": 0, "regions": 50},
            "source": MITIGATIONS["agc"].source,
            "saved": True,
        }
    }
    assert result["mitigations"]["figures"].keys() == {"agc.skipped_share"}
    share = result["mitigations"]["figures"]["agc.skipped_share"]
    assert 0.1 < share < 0.9
    source = MITIGATIONS["agc"].source
    row = f"| mitigation agc | {source}; mem_ratio 1, decay 0, regions 50; skipped share: {share:.3g} |"
    assert row in (run / "README.md").read_text(encoding="utf-8")

    killed.mkdir()
    kill = functools.partial(few_timesteps, functools.partial(interrupted_in_step, 5, signal.SIGTERM))
    assert finetune(*call, folder=killed, double=kill).code == 130
    (again,) = (killed / "runs" / "finetune").glob("*/*")
    assert not (again / "result.json").exists()
    outcome = finetune(f"resume={again}", folder=killed, double=few_timesteps)
    assert outcome.code == 0, outcome.err
    assert same(denoiser_of(again), denoiser_of(run))
    assert result_of(again) == result_of(run)


def test_calibrated_thresholds_are_kept_and_can_be_told(tmp_path: Path, small: tuple[str, ...]) -> None:
    call = (*small, "mask=[up_blocks.0]", "mitigation=threshold", "mitigation.threshold.draws=8")
    first, second = tmp_path / "first", tmp_path / "second"
    run = finetuned(*call, folder=first)
    kept = run / "caption_thresholds.json"
    assert len(read_json(kept)["limits"]) == 8
    told = finetuned(*call, f"mitigation.threshold.file={kept}", folder=second)
    assert not (told / kept.name).exists(), "nothing was calibrated"
    assert same(denoiser_of(told), denoiser_of(run))


def test_edits_are_saved_and_what_steers_the_sampler_is_said_not_to_be(tmp_path: Path, small: tuple[str, ...]) -> None:
    call = (*small, "method=lora", "mask=[down_blocks.1,up_blocks.0]", "final.images=9")
    run = finetuned(*call, "+mitigation.zeroed={}", "+mitigation.noticed={}", folder=tmp_path, double=registered)
    weights = denoiser_of(run)["conv_norm_out.weight"]
    assert (weights[::2] == 0).all()
    assert (weights[1::2] != 0).all()
    result = read_json(run / "result.json")
    assert (result["pipeline"], result["adapter"]) == ("pipeline", None), "an adapter alone would not be pruned"
    assert not (run / "adapter").exists()
    assert len(snippets(run)) == 1
    assert {name: chosen["saved"] for name, chosen in result["mitigations"]["chosen"].items()} == {
        "zeroed": True,
        "noticed": False,
    }
    assert result["mitigations"]["figures"] == {"zeroed.share": 0.5}
    assert (tmp_path / "noticed.txt").read_text().split() == ["8", "8", "8", "9"], "validations, and the test split"
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "| mitigation zeroed | Nobody et al., 2026; every 2; share: 0.5 |" in card
    assert "**The images were sampled with noticed, which the saved pipeline does not carry**" in card
    assert "There is no adapter: alone it would not carry zeroed." in card


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("mitigation=iet", "mitigation.iet.shards=1"), "mitigation=iet trains in a course of its own"),
        (("method=adapter", "method.options.width=4", "+mitigation.zeroed={}"), "mitigation=zeroed changes"),
        (("+mitigation.hope={}",), "mitigation=hope is none"),
        (("+mitigation.agc.strength=1",), "no setting strength"),
        (("mitigation=agc", "mitigation.agc.decay=1"), "mitigation.agc.decay=1"),
        (("+mitigation.agc=0",), "mitigation.agc=0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_call_is_one_line(
    tmp_path: Path, small: tuple[str, ...], arguments: tuple[str, ...], named: str
) -> None:
    outcome = finetune(*small, "mask=all", *arguments, folder=tmp_path, double=registered)
    refused_in_one_line(outcome.code, outcome.err, named)
    assert not (tmp_path / "runs").exists()
