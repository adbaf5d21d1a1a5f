from __future__ import annotations

import os
import signal

import pytest

from agents.finetuning.interruption import Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_at_once_but_waits_for_what_is_held(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interruption() as interruption:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        with interruption.held():
            os.kill(os.getpid(), number)
            whole = True
        assert whole
        assert interruption.pending
        interruption.pending = False
    assert signal.getsignal(number) is before


def test_what_was_held_is_not_lost() -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with Interruption() as interruption, interruption.held():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("block")
        done.append("after")
    assert done == ["block"]


def test_of_several_processes_none_leaves_alone() -> None:
    with Interruption(always=True) as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.pending
        interruption.pending = False
