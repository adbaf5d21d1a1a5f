from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from envs.mitigations import MITIGATIONS, Mitigation, Stage, find_mitigations
from rewards.errors import InputError
from tests.envs.mitigations.conftest import Ward, same

CONF = Path(__file__).parents[3] / "conf" / "mitigation"


@pytest.mark.parametrize("name", MITIGATIONS)
def test_the_configuration_lists_every_setting_with_its_default(name: str) -> None:
    assert yaml.safe_load((CONF / f"{name}.yaml").read_text()) == {name: dict(MITIGATIONS[name]().settings)}


def test_every_file_of_the_configuration_is_a_mitigation_or_a_set_of_them() -> None:
    sets = {"none": [], "iet_agc": ["iet", "agc"]}
    assert {path.stem for path in CONF.glob("*.yaml")} == {*MITIGATIONS, *sets}
    for name, members in sets.items():
        assert yaml.safe_load((CONF / f"{name}.yaml").read_text()).get("defaults", []) == members


def test_the_order_is_that_in_which_they_act_whatever_was_asked_for_first() -> None:
    order = [each.name for each in find_mitigations({name: {} for name in reversed(["agc", "iet"])})]
    assert order == ["agc", "iet"]
    stages = [each.stage for each in MITIGATIONS.values()]
    assert stages == sorted(stages), "the registry is in that order"


def test_every_mitigation_names_its_paper() -> None:
    for mitigation in MITIGATIONS.values():
        assert mitigation.source
        assert mitigation.__doc__


@pytest.mark.parametrize("name", ["augment", "deduplicate"])
def test_what_would_break_the_guarantee_of_differential_privacy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Private(Mitigation):
        name, stage, source = "dp_sgd", Stage.STEP, "nobody"

    monkeypatch.setitem(MITIGATIONS, "dp_sgd", Private)
    with pytest.raises(InputError, match=rf"mitigation=\[{name},dp_sgd\]: .*guarantee.* — choose one of the two"):
        find_mitigations({"dp_sgd": {}, name: {}})


def test_unknown_names_and_settings() -> None:
    with pytest.raises(InputError, match="mitigation=hope is none — choose among none, agc"):
        find_mitigations({"hope": {}})
    with pytest.raises(
        InputError, match="mitigation=agc has no setting strength — its settings are mem_ratio, decay, regions"
    ):
        find_mitigations({"agc": {"strength": 1}})


def test_nothing_chosen_is_plain_training(ward: Ward) -> None:
    regimen = ward.regimen({})
    assert regimen.treatment.manner == type(regimen.treatment.manner)()
    assert not regimen.treatment.edits
    assert not regimen.treatment.steerings


@pytest.mark.parametrize("name", MITIGATIONS)
def test_the_same_key_gives_the_same_numbers(ward: Ward, name: str) -> None:
    settings = {"iet": {"shards": 2, "rounds": 2}}.get(name, {})
    assert same(ward.after({name: settings}), ward.after({name: settings}))


@pytest.mark.parametrize("name", [name for name, kind in MITIGATIONS.items() if kind.stage is Stage.SAMPLING])
def test_what_acts_on_the_sampler_leaves_the_weights_to_plain_training(ward: Ward, name: str) -> None:
    assert same(ward.after({name: {}}), ward.after({})), "bit by bit"
