"""Fixtures that more than one package's tests need."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Before torch is imported anywhere: workers and tests side by side would wait for each other's threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts what it puts in the background with Ctrl-C ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images. Without it the test is skipped, except in CI, where that is a failure."""
    folder = os.environ.get("MEMCONTROL_DATA")
    if folder and Path(folder).is_dir():
        return Path(folder)
    reason = "MEMCONTROL_DATA does not point at the folder of real images"
    if os.environ.get("CI"):
        pytest.fail(f"in CI a test on real images must run: {reason}")
    pytest.skip(reason)
