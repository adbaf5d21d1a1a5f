from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.mitigations import MITIGATIONS
from envs.task import MITIGATION_VERSIONS, InnerBudget, Schedule, SelectionTask, content_hash, parse_mask
from rewards.errors import InputError

INNER = InnerBudget(steps=10, batch_size=4, learning_rate=1e-3, images=8, sampling_steps=5)
TASK = SelectionTask(
    env="phantom",
    split_sha256="ab",
    backbone="embedded",
    backbone_sha256="cd",
    method="full",
    scheme="blocks",
    groups=("input", "middle", "output"),
    inner=INNER,
    metrics=("kid", "membership"),
    options={"threads": 1},
)
OTHER_INNER: dict[str, Any] = {
    "steps": 11,
    "batch_size": 5,
    "learning_rate": 2e-3,
    "images": 9,
    "sampling_steps": 6,
    "warmup": 1,
    "decay": "none",
    "weight_decay": 0.1,
    "caption_dropout": 0.2,
    "guidance_scale": 2.0,
    "loss_draws": 9,
    "inversions": 9,
}
OTHER_TASK: dict[str, Any] = {
    "env": "isic",
    "split_sha256": "ac",
    "backbone_sha256": "ce",
    "method": "attention",
    "scheme": "layers",
    "groups": ("input", "output", "middle"),
    "metrics": ("membership", "kid"),
    "judge": "test",
    "seed": 1,
    "options": {"threads": 2},
}

masks = st.integers(1, 12).flatmap(lambda n: st.lists(st.tuples(*[st.booleans()] * n), min_size=1, max_size=4))


def test_the_tables_above_name_every_field() -> None:
    assert set(OTHER_INNER) == {field.name for field in dataclasses.fields(InnerBudget)}
    named = {field.name for field in dataclasses.fields(SelectionTask)}
    assert set(OTHER_TASK) | {"inner", "backbone"} == named


def test_every_field_changes_the_id() -> None:
    inners = [dataclasses.replace(INNER, **{name: value}) for name, value in OTHER_INNER.items()]
    tasks = [
        TASK,
        *(dataclasses.replace(TASK, **{name: value}) for name, value in OTHER_TASK.items()),
        *(dataclasses.replace(TASK, inner=inner) for inner in inners),
    ]
    schedule = Schedule.from_key("101")
    assert len({task.id for task in tasks}) == len(tasks)
    assert len({task.evaluation_key(schedule) for task in tasks}) == len(tasks)


def test_the_code_version_changes_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    before = TASK.id
    monkeypatch.setattr("envs.task.CODE_VERSION", 999)
    assert TASK.id != before


def test_the_version_of_a_mitigation_changes_the_ids_of_tasks_with_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = {
        name: dataclasses.replace(TASK, options={"mitigations": {each: {} for each in name.split(",")}})
        for name in ("ema", "augment", "augment,ema")
    } | {"none": TASK}
    before = {name: task.id for name, task in tasks.items()}
    monkeypatch.setattr("envs.task.MITIGATION_VERSIONS", {"ema": 999})
    after = {name: task.id for name, task in tasks.items()}
    assert {name for name in tasks if after[name] != before[name]} == {"ema", "augment,ema"}


def test_every_version_of_a_mitigation_is_of_one_that_there_is() -> None:
    assert set(MITIGATION_VERSIONS) <= set(MITIGATIONS)
    assert all(version > 1 for version in MITIGATION_VERSIONS.values()), "1 is what has no entry"


def test_where_the_backbone_lies_does_not_matter() -> None:
    moved = dataclasses.replace(TASK, backbone="/somewhere/else")
    assert moved.id == TASK.id
    assert moved.evaluation_key(Schedule.from_key("101")) == TASK.evaluation_key(Schedule.from_key("101"))


def test_the_id_outlives_the_process() -> None:
    """Stores hold evaluations of other processes and of other days."""
    identity = json.loads(json.dumps(TASK.identity()))
    assert content_hash(identity)[:16] == TASK.id
    one, other = ({"b": 1, "a": 2}, {"a": 2, "b": 1})
    assert dataclasses.replace(TASK, options=one).id == dataclasses.replace(TASK, options=other).id


@given(masks, masks)
def test_schedules_have_one_key_each(one: list[tuple[bool, ...]], other: list[tuple[bool, ...]]) -> None:
    first, second = Schedule(tuple(one)), Schedule(tuple(other))
    assert Schedule.from_key(first.key) == first
    assert set(first.key) <= set("01/")
    assert (first.key == second.key) == (first == second)
    assert (TASK.evaluation_key(first) == TASK.evaluation_key(second)) == (first == second)
    assert first.learns == ("1" in first.key)


def test_schedules() -> None:
    assert Schedule.constant([0, 1, True]).key == "011"
    assert Schedule(((False, True), (True, True))).key == "01/11"
    for key in ("", "/", "01/1", "01/", "012", "0 1", "true"):
        with pytest.raises(ValueError, match="schedule"):
            Schedule.from_key(key)
    with pytest.raises(ValueError, match="at least one phase"):
        Schedule(())


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("steps", [0, -1]),
        ("batch_size", [0]),
        ("images", [0]),
        ("sampling_steps", [0]),
        ("loss_draws", [0]),
        ("learning_rate", [0.0, -1.0, math.nan, math.inf]),
        ("warmup", [-1, 10]),
        ("weight_decay", [-0.1, math.nan, math.inf]),
        ("caption_dropout", [-0.1, 1.0, math.nan]),
        ("guidance_scale", [0.9, math.nan, math.inf]),
    ],
)
def test_budgets_out_of_range_are_refused(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InputError, match=rf"{field}={value}"):
            dataclasses.replace(INNER, **{field: value})


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        ("all", "111"),
        ("none", "000"),
        ("011", "011"),
        (" 100 ", "100"),
        ("input", "100"),
        ("output, input", "101"),
        ("middle,middle", "010"),
    ],
)
def test_masks_are_read(text: str, mask: str) -> None:
    expected = tuple(bit == "1" for bit in mask)
    assert TASK.parse_mask(text) == parse_mask(text, TASK.groups) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("01", "mask=01 has 2 toggles — give 3, one each for input, middle, output"),
        ("0111", "mask=0111 has 4 toggles"),
        ("inptu", r"mask='inptu' names no layer group \['inptu'\] — choose among input, middle, output, all or none"),
        ("input,012", r"names no layer group \['012'\]"),
        ("input,all", r"names no layer group \['all'\]"),
        ("", "mask='' names no layer group"),
        (" , ", "mask=',' names no layer group"),
    ],
)
def test_other_masks_are_refused(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        TASK.parse_mask(text)


@given(masks.map(lambda phases: phases[0]))
def test_masks_survive_writing_and_reading(mask: tuple[bool, ...]) -> None:
    groups = tuple(f"group {i}" for i in range(len(mask)))
    assert parse_mask("".join("01"[bit] for bit in mask), groups) == mask
    if any(mask):
        assert parse_mask(",".join(g for g, on in zip(groups, mask, strict=True) if on), groups) == mask
