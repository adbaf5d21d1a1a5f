"""The untrained pipeline of the environments' tests, for the few runs that fine-tune in earnest."""

from __future__ import annotations

from tests.envs.conftest import pipeline_folder

__all__ = ["pipeline_folder"]
