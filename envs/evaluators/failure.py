"""The vocabulary of `Evaluation.failure`: its first word says whether another attempt could end otherwise."""

from __future__ import annotations

KILLED = "killed"
"""The worker process ended in mid-evaluation."""
OUT_OF_MEMORY = "out of memory"
"""Host or device memory ran out."""
DIVERGED = "diverged"
"""A loss or a weight was not finite (raise `FloatingPointError`)."""
ERROR = "error"
"""Any other exception."""


def describe(error: BaseException) -> str:
    """The one-line reason that an exception becomes, e.g. ``"out of memory: CUDA out of memory. Tried ..."``."""
    line = " ".join(str(error).split())
    if is_out_of_memory(error):
        return f"{OUT_OF_MEMORY}: {line or type(error).__name__}"
    if isinstance(error, FloatingPointError):
        return f"{DIVERGED}: {line}"
    return f"{ERROR}: {type(error).__name__}: {line}"


def is_out_of_memory(error: BaseException) -> bool:
    """True for Python's and CUDA's own errors and for those of torch's allocator on the CPU, which have no class."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(words in str(error) for words in ("can't allocate memory", "not enough memory"))


def worth_retrying(failure: str) -> bool:
    """True for what the machine did to the evaluation: a second attempt, on a fresh process, may succeed."""
    return failure.startswith((KILLED, OUT_OF_MEMORY))


def is_final(failure: str) -> bool:
    """True for success (empty) and for what the schedule itself leads to, every time.

    An unforeseen exception is not final: it may be a full disk, or a bug that is mended by the next run.
    """
    return not failure.startswith((KILLED, OUT_OF_MEMORY, ERROR))
