"""Every parameter of a group that is on."""

from __future__ import annotations

from envs.methods.base import subset_method

full = subset_method("full", lambda denoiser, name, parameter: True)
