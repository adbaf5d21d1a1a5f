from __future__ import annotations

import pytest
import torch

from envs.evaluators.failure import describe, is_final, worth_retrying


def test_memory_errors_of_python_cuda_and_cpu_torch_are_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as on_cpu:
        torch.empty(10**15)
    windows = RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 80000 bytes.")
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), on_cpu.value, windows):
        reason = describe(error)
        assert reason.startswith("out of memory: ")
        assert "\n" not in reason
        assert worth_retrying(reason)
        assert not is_final(reason)


def test_divergence_is_final_and_unforeseen_exceptions_are_not() -> None:
    assert describe(FloatingPointError("loss is nan\nat step 3")) == "diverged: loss is nan at step 3"
    assert is_final("diverged: loss is nan at step 3")
    assert not worth_retrying("diverged: loss is nan at step 3")
    assert describe(KeyError("a bug")) == "error: KeyError: 'a bug'"
    assert not is_final("error: KeyError: 'a bug'")
    assert not worth_retrying("error: KeyError: 'a bug'")
    assert is_final("")
    assert not worth_retrying("")
