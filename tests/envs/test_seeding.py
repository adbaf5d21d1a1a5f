from __future__ import annotations

import subprocess
import sys

import torch
from hypothesis import given
from hypothesis import strategies as st

from envs.seeding import derive_seed, torch_generator

purposes = st.lists(st.one_of(st.integers(0, 10**6), st.text("abcdef", min_size=1)), max_size=3)


@given(st.integers(0, 2**40), purposes, st.integers(0, 2**40), purposes)
def test_seeds_differ_with_seed_and_purpose(a: int, why: list[int | str], b: int, why_else: list[int | str]) -> None:
    one, other = derive_seed(a, *why), derive_seed(b, *why_else)
    assert (one == other) == ((a, *map(str, why)) == (b, *map(str, why_else)))
    assert 0 <= one < 2**63
    torch_generator(a, *why)


def test_where_one_word_ends_and_the_next_begins_matters() -> None:
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert derive_seed(1, "ab", "c") != derive_seed(1, "a", "bc")


def test_seeds_are_the_same_in_every_process() -> None:
    code = "from envs.seeding import derive_seed; print(derive_seed(7, 'noise', 3))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == derive_seed(7, "noise", 3) != derive_seed(7, "noise", 4)


def test_generators_repeat_their_numbers() -> None:
    draws = [torch.randn(4, generator=torch_generator(*key)) for key in ((1, "a"), (1, "a"), (1, "b"), (2, "a"))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])
