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
        with pytest.raises(KeyboardInterrupt):
            interruption.raise_pending()
        interruption.raise_pending()
    assert signal.getsignal(number) is before


def test_of_several_processes_none_leaves_alone() -> None:
    with Interruption(always=True) as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.pending
