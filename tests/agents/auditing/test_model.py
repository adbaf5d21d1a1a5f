from __future__ import annotations

import pytest

from agents.auditing.model import prompts_of


def test_few_captions_are_asked_for_as_often_as_they_occur() -> None:
    prompts, note = prompts_of(["a", "b", "a"], 48, 16)
    assert prompts == ["a", "b", "a"] * 16
    assert note == ""


@pytest.mark.parametrize(("images", "per_prompt", "chosen"), [(64, 16, 4), (70, 16, 4), (8, 16, 1)])
def test_of_many_captions_so_many_are_taken_that_each_gets_enough(images: int, per_prompt: int, chosen: int) -> None:
    captions = [f"image {i}" for i in range(200)]
    prompts, note = prompts_of(captions, images, per_prompt)
    assert len(prompts) == images
    assert set(prompts) == set(captions[:chosen])
    assert min(prompts.count(caption) for caption in captions[:chosen]) >= min(per_prompt, images)
    assert note == f"images were generated from {chosen} of 200 captions, {images // chosen} each or more"
